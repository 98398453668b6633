"""Recipes: what is accepted comes back equal, what is not is refused in one line that names the key."""

import json
import math
import operator
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploytool.errors import RecipeError
from deploytool.recipe import FloatMethod, PgdAtMethod, Recipe, StandardMethod, load_recipe, make_recipe

SHIPPED = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
SMALLEST = "name: x\nmethod: {name: float}\n"
SECTIONS = {
    "name", "seed", "data", "model", "method", "sparsity", "reasoning", "regularization", "attack", "optimizer",
    "evaluate", "pipeline", "robustness",
}  # fmt: skip

shipped = pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def smallest(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "method": {"name": "float"}, **changes}


def nested(key: str, value: Any) -> dict[str, Any]:
    """The smallest recipe with one dotted key set, made without --set."""
    document = smallest()
    place = document
    *sections, last = key.split(".")
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return document


def at(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def refusal(document: dict[str, Any], overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        make_recipe(document, overrides)
    return one_line(caught.value)


def one_line(error: Exception) -> str:
    message = str(error)
    assert message and "\n" not in message and len(message) < 500
    return message


# Shipped recipes and the round trip


def test_recipes_are_shipped() -> None:
    assert {"digits-float", "digits-standard", "digits-pgd-at"} <= {file.stem for file in SHIPPED}


@shipped
def test_a_shipped_recipe_says_what_its_file_says(file: Path) -> None:
    recipe, written = load_recipe(file), yaml.safe_load(file.read_text())
    assert recipe.name == file.stem
    assert recipe.method.name == written["method"]["name"]
    for section in ("data", "model", "method", "optimizer"):
        for key, value in written[section].items():
            assert at(recipe, f"{section}.{'lam' if key == 'lambda' else key}") == value


@shipped
def test_a_shipped_recipe_round_trips_through_yaml(file: Path, recipe_file: Path) -> None:
    recipe = load_recipe(file)
    recipe_file.write_text(recipe.to_yaml())
    again = load_recipe(recipe_file)
    assert again == recipe and again.digest() == recipe.digest() and again.to_yaml() == recipe.to_yaml()


def test_an_attack_on_reasons_needs_reasons() -> None:
    message = refusal(smallest(evaluate={"attacks": ["fgsm", "consistent-5:restarts=1"]}))
    assert "evaluate.attacks (=consistent-5:restarts=1)" in message and "section reasoning" in message
    both = smallest(evaluate={"attacks": ["consistent-5"]}, reasoning={"labels": "x.yaml"})
    assert make_recipe(both).evaluate.attacks == ["consistent-5"]


def test_to_yaml_writes_every_default_out() -> None:
    written = yaml.safe_load(make_recipe(smallest()).to_yaml())
    assert set(written) == SECTIONS
    assert written["optimizer"] == {"epochs": 30, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    assert written["attack"]["eps"] == 8 / 255 and written["attack"]["step_size"] == 2 / 255


def test_lambda_keeps_its_name_in_yaml_and_json() -> None:
    recipe = make_recipe({"name": "x", "method": {"name": "pgd-at", "lambda": 0.25}})
    assert yaml.safe_load(recipe.to_yaml())["method"] == {"name": "pgd-at", "lambda": 0.25}
    assert recipe.model_dump(mode="json", by_alias=True)["method"] == {"name": "pgd-at", "lambda": 0.25}


recipes = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
        "method": st.one_of(
            st.just({"name": "standard"}),
            st.fixed_dictionaries({"name": st.just("pgd-at"), "lambda": st.floats(0, 1)}),
            st.fixed_dictionaries(
                {"name": st.just("float")},
                optional={
                    "noise": st.sampled_from(["redrawn", "frozen", "none"]),
                    "noise_seed": st.integers(0, 2**63 - 1),
                    "conditioning": st.sampled_from(["switch", "interpolate"]),
                    "lambda_threshold": st.sampled_from([0, 0.5]),
                    "alpha_init": st.floats(1e-6, 10),
                },
            ),
        ),
    },
    optional={
        "seed": st.integers(0, 2**31 - 1),
        "data": st.fixed_dictionaries({}, optional={"name": st.text(), "root": st.none() | st.text()}),
        "optimizer": st.fixed_dictionaries(
            {},
            optional={
                "epochs": st.integers(0, 100000),
                "lr": st.floats(1e-9, 100),
                "momentum": st.floats(0, 1, exclude_min=True, exclude_max=True),
                "weight_decay": st.floats(0, 1),
            },
        ),
        "regularization": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "kernel": st.sampled_from(["l1", "l2", "elastic-net", None]),
                "factor": st.floats(0, 1e6),
                "alpha": st.floats(0, 1),
                "activation": st.floats(0, 1e6),
            },
        ),
        "evaluate": st.fixed_dictionaries(
            {},
            optional={
                "lambdas": st.lists(st.floats(0, 1), min_size=1),
                "attacks": st.lists(st.sampled_from(["fgsm", "pgd-1", "pgd-9999"]), min_size=1),
                "images": st.none() | st.integers(1),
            },
        ),
        "pipeline": st.just({"compare": {"key": "seed", "values": [1, "a", None, [2.5], {"b": True}]}}),
    },
)


@settings(deadline=None)
@given(recipes)
@example({"name": "2020-01-01", "method": {"name": "standard"}})
@example({"name": "1e3", "method": {"name": "pgd-at", "lambda": 5e-324}})
@example({"name": "null", "method": {"name": "standard"}, "data": {"name": "npz:\u2028\x85 é"}})
def test_every_valid_recipe_round_trips_through_yaml(document: dict[str, Any]) -> None:
    recipe = make_recipe(document)
    assert make_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_values_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_recipe(smallest()).seed = 3


@pytest.mark.parametrize(
    ("name", "kind"), [("standard", StandardMethod), ("pgd-at", PgdAtMethod), ("float", FloatMethod)]
)
def test_the_name_of_the_method_picks_its_section(name: str, kind: type) -> None:
    assert type(make_recipe({"name": "x", "method": {"name": name}}).method) is kind


# Unknown keys


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optimiser", "optimizer"),
        ("nme", "name"),
        ("data.batchsize", "batch_size"),
        ("model.archs", "arch"),
        ("method.noize", "noise"),
        ("method.lambda_treshold", "lambda_threshold"),
        ("attack.stepsize", "step_size"),
        ("optimizer.weight-decay", "weight_decay"),
        ("regularisation", "regularization"),
        ("regularization.kernels", "kernel"),
        ("model.weight", "weights"),
        ("data.adversarials", "adversarial"),
        ("evaluate.attack", "attacks"),
        ("pipeline.compar", "compare"),
        ("pipeline.compare.keys", "key"),
    ],
)
def test_an_unknown_key_gets_the_nearest_name(key: str, nearest: str) -> None:
    assert re.search(rf"unknown key {re.escape(key)}; did you mean {nearest}\?", refusal(nested(key, 1)))


def test_a_misspelt_required_key_is_called_unknown_and_not_missing() -> None:
    assert "unknown key nme; did you mean name?" in refusal({"nme": "x", "method": {"name": "float"}})
    assert "unknown key methd; did you mean method?" in refusal({"name": "x", "methd": {"name": "float"}})


def test_lambda_is_suggested_by_its_name_in_the_file() -> None:
    message = refusal({"name": "x", "method": {"name": "pgd-at", "lamda": 1}})
    assert "unknown key method.lamda; did you mean lambda?" in message


def test_a_key_of_another_method_is_unknown() -> None:
    message = refusal({"name": "x", "method": {"name": "standard", "noise": "frozen"}})
    assert "unknown key method.noise; allowed: name" in message


@pytest.mark.parametrize("key", ["float", "standard", "pgd-at"])
def test_the_name_of_a_method_as_a_key_is_unknown_like_any_other(key: str) -> None:
    assert f"unknown key {key};" in refusal(smallest(**{key: 1}))
    assert f"unknown key method.{key};" in refusal({"name": "x", "method": {"name": "float", key: 1}})


def test_a_key_near_to_nothing_gets_the_list_of_names() -> None:
    message = refusal(smallest(zzzzzz=1))
    assert "unknown key zzzzzz" in message and all(name in message for name in SECTIONS)


def test_further_problems_are_counted() -> None:
    message = refusal(smallest(aaa=1, seed=-1, optimizer={"lr": -1}))
    assert "unknown key aaa" in message and message.endswith("(and 2 more)")


# Wrong values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("name", ""),
        ("name", "../escape"),
        ("name", "a" * 65),
        ("name", "a\n"),
        ("seed", 1.5),
        ("seed", -1),
        ("seed", 2**31),
        ("seed", None),
        ("data", "digits"),
        ("data", None),
        ("data.batch_size", 1),
        ("data.batch_size", 65537),
        ("data.crop_padding", -1),
        ("data.crop_padding", 65),
        ("data.flip", "perhaps"),
        ("model.arch", ["resnet8"]),
        ("model.weights", ""),
        ("model.mean", []),
        ("model.mean", [0.5, "a"]),
        ("model.std", [0.2, 0]),
        ("data.adversarial", [""]),
        ("data.adversarial", {}),
        ("regularization", "l1"),
        ("regularization.kernel", "lasso"),
        ("regularization.factor", -0.01),
        ("regularization.alpha", 1.5),
        ("regularization.activation", -1e-9),
        ("method", "float"),
        ("method", []),
        ("method.noise", "loud"),
        ("method.noise_seed", 2**63),
        ("method.conditioning", "both"),
        ("method.lambda_threshold", 0.3),
        ("method.alpha_init", 0),
        ("method.alpha_init", 10.5),
        ("attack.eps", 0),
        ("attack.eps", 1.01),
        ("attack.eps", "8/255/2"),
        ("attack.step_size", -0.1),
        ("attack.steps", 0),
        ("attack.steps", 1001),
        ("optimizer.epochs", -1),
        ("optimizer.lr", 0),
        ("optimizer.lr", 101),
        ("optimizer.momentum", 1),
        ("optimizer.weight_decay", -1e-9),
        ("evaluate.lambdas", []),
        ("evaluate.lambdas", {}),
        ("evaluate.attacks", []),
        ("evaluate.lambda_thresholds", []),
        ("evaluate.images", 0),
        ("pipeline.compare", {"key": "a"}),
        ("pipeline.compare", {"key": "a", "values": []}),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(key: str, value: Any) -> None:
    assert key in refusal(nested(key, value))


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("reasoning", {}, "key reasoning.labels is missing"),
        ("reasoning", {"labels": "x", "alpha": 1}, "reasoning.alpha (=1)"),
        ("reasoning", {"labels": "x", "threshold": 1.01}, "reasoning.threshold (=1.01)"),
        ("reasoning", {"labels": "x", "attack": "clas"}, "reasoning.attack (='clas')"),
        ("reasoning", {"labels": "x", "per_clas": 3}, "did you mean per_class?"),
        ("model.dropout", 1, "model.dropout (=1)"),
        ("evaluate.lambdas", [0, 1.5], "evaluate.lambdas.1 (=1.5)"),
        ("evaluate.attacks", ["fgsm", "pgd"], "evaluate.attacks.1 (='pgd'): unknown, did you mean pgd-7?; known: fgsm"),
        ("evaluate.attacks", ["pgd-0"], "evaluate.attacks.0 (='pgd-0')"),
        ("evaluate.attacks", ["fgsm\n"], "evaluate.attacks.0"),
        ("evaluate.lambda_thresholds", [0.5, 0.4], "evaluate.lambda_thresholds.1 (=0.4): must be 0 or 0.5"),
        ("evaluate.conditionings", ["switch", "none"], "evaluate.conditionings.1 (='none')"),
    ],
)
def test_a_wrong_item_of_a_list_is_named_by_its_place(key: str, value: Any, shown: str) -> None:
    assert shown in refusal(nested(key, value))


NUMBERS = [
    "method.alpha_init", "method.lambda_threshold", "attack.eps", "attack.step_size", "optimizer.lr",
    "optimizer.momentum", "optimizer.weight_decay", "evaluate.lambdas", "evaluate.lambda_thresholds",
    "regularization.factor", "regularization.alpha", "regularization.activation", "model.mean", "model.std",
]  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, ".nan", "inf"])
def test_numbers_must_be_finite(key: str, value: Any) -> None:
    assert key in refusal(nested(key, value))


def test_nan_from_a_fraction_or_a_file_is_refused(recipe_file: Path) -> None:
    assert "attack.eps" in refusal(nested("attack.eps", "nan/1"))
    assert "attack.eps" in refusal(nested("attack.eps", "1e308/1e-308"))
    recipe_file.write_text(SMALLEST + "optimizer: {lr: .nan}\n")
    with pytest.raises(RecipeError, match="optimizer.lr"):
        load_recipe(recipe_file)


def test_missing_keys_are_named() -> None:
    assert "key name is missing" in refusal({"method": {"name": "float"}})
    assert "key method is missing" in refusal({"name": "x"})
    assert "key method.name is missing" in refusal({"name": "x", "method": {"noise": "frozen"}})


@pytest.mark.parametrize(("tag", "advice"), [("flot", "did you mean float?"), ("pgd_at", "did you mean pgd-at?")])
def test_an_unknown_method_gets_the_nearest_one(tag: str, advice: str) -> None:
    message = refusal({"name": "x", "method": {"name": tag}})
    assert f"method.name (='{tag}') is unknown; {advice} allowed: standard, pgd-at, float" in message


@pytest.mark.parametrize("tag", [None, 3, [], {}, "zzz"])
def test_a_method_of_no_known_name_gets_the_list(tag: Any) -> None:
    assert "allowed: standard, pgd-at, float" in refusal({"name": "x", "method": {"name": tag}})


def test_a_step_longer_than_the_ball_is_refused() -> None:
    message = refusal(smallest(attack={"eps": 0.1, "step_size": 0.25}))
    assert "attack.step_size (=0.25)" in message and "0.2)" in message
    assert make_recipe(smallest(attack={"eps": 0.125, "step_size": 0.25})).attack.step_size == 0.25


# Fractions


def test_eight_255ths() -> None:
    attack = make_recipe(smallest(attack={"eps": "8/255", "step_size": " 2 / 255 "})).attack
    assert attack.eps == pytest.approx(0.03137254901960784, rel=1e-15)
    assert attack.step_size == pytest.approx(0.00784313725490196, rel=1e-15)


@settings(deadline=None)
@given(st.integers(1, 255), st.integers(1, 255))
def test_a_fraction_is_a_division(numerator: int, denominator: int) -> None:
    document = smallest(attack={"eps": f"{numerator}/{denominator}", "step_size": 1e-3})
    if numerator > denominator:
        assert "attack.eps" in refusal(document)
    else:
        assert make_recipe(document).attack.eps == numerator / denominator


@pytest.mark.parametrize("text", ["8/0", "a/b", "/", "8/", "/255"])
def test_a_bad_fraction_is_shown_how_to_write_one(text: str) -> None:
    message = refusal(nested("attack.eps", text))
    assert f"attack.eps (='{text}')" in message and "8/255" in message


# --set


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=5", "seed", 5),
        ("seed = 5", "seed", 5),
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("attack.eps=4/250", "attack.eps", 0.016),
        ("data.flip=true", "data.flip", True),
        ("data.name=npz:/a=b.npz", "data.name", "npz:/a=b.npz"),
        ("data={batch_size: 32}", "data.batch_size", 32),
        ("evaluate.lambdas=[0, 0.25]", "evaluate.lambdas", [0.0, 0.25]),
        ("evaluate.lambdas=0,0.25", "evaluate.lambdas", [0.0, 0.25]),
        ("evaluate.lambdas=0.25", "evaluate.lambdas", [0.25]),
        ("evaluate.attacks=fgsm, pgd-3", "evaluate.attacks", ["fgsm", "pgd-3"]),
        ("evaluate.attacks=[fgsm]", "evaluate.attacks", ["fgsm"]),
        ("evaluate.attacks=fgsm", "evaluate.attacks", ["fgsm"]),
        ("evaluate.lambda_thresholds=0.5", "evaluate.lambda_thresholds", [0.5]),
        ("evaluate.conditionings=switch,interpolate", "evaluate.conditionings", ["switch", "interpolate"]),
        ("evaluate.images=null", "evaluate.images", None),
        ("regularization={kernel: l1}", "regularization.factor", 0.01),
        ("regularization.activation=1e-4", "regularization.activation", 1e-4),
        ("data.adversarial=a.npz,b.npz", "data.adversarial", ["a.npz", "b.npz"]),
        ("data.adversarial=[a.npz]", "data.adversarial", ["a.npz"]),
        ("model.weights=run", "model.weights", "run"),
        ("model.std=0.25", "model.std", [0.25]),
        ("optimizer.epochs=0", "optimizer.epochs", 0),
        ("method.name=standard", "method", StandardMethod(name="standard")),
        ("method={name: pgd-at, lambda: 0.5}", "method.lam", 0.5),
        ("pipeline.compare={key: seed, values: [1, 2]}", "pipeline.compare.values", [1, 2]),
    ],
)
def test_set_assigns_one_value(override: str, key: str, value: Any) -> None:
    assert at(make_recipe(smallest(evaluate={"images": 3}), [override]), key) == value


def test_later_assignments_win_and_the_given_document_stays_as_it_was() -> None:
    document = smallest(seed=1)
    assert make_recipe(document, ["seed=2", "seed=3"]).seed == 3
    assert document == smallest(seed=1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("", "form key=value"),
        ("seed", "form key=value"),
        ("=1", "form key=value"),
        ("data..flip=1", "form key=value"),
        (".=1", "form key=value"),
        ("seed=[1", "no valid YAML"),
        ("seed=1: 2: 3", "no valid YAML"),
        ("seed=\x00", "no valid YAML"),
        ("seed=2020-13-45", "no valid YAML"),
        ("seed=&a [*a]", "no valid YAML"),
        ("seed=!!python/object/apply:os.getcwd []", "no valid YAML"),
        ("seed=" + "[" * 5000, "no valid YAML"),
        ("seed=" + "9" * 5000, "no valid YAML"),
        ("seed=0x" + "f" * 5000, "no valid YAML"),
        ("name.x=1", "name holds a value, not a section"),
        ("optimiser.lr=1", "did you mean optimizer?"),
        ("method.lambda=0.5", "unknown key method.lambda"),
        ("seed=", "seed (=None)"),
        ("optimizer.lr=.nan", "optimizer.lr (=nan)"),
        ("evaluate.lambdas=0,a", "evaluate.lambdas.1 (='a')"),
        ("evaluate.lambdas=0,nan", "evaluate.lambdas.1"),
        ("evaluate.attacks=", "evaluate.attacks"),
    ],
)
def test_a_bad_assignment_is_refused_in_one_line(override: str, words: str) -> None:
    assert words in refusal(smallest(), (override,))


# JSON Schema


def violations(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "$") -> list[str]:
    """Judge by the JSON Schema keywords a recipe's schema uses; an unknown keyword fails the test."""
    notes = {"title", "description", "default", "discriminator", "$schema", "$defs"}
    found: list[str] = []
    types = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool}
    for key, rule in schema.items():
        if key in notes:
            continue
        good = True
        if key == "type":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if rule in ("number", "integer"):
                good = number and (rule == "number" or value == int(value))
            else:
                good = isinstance(value, types[rule])
        elif key == "$ref":
            found += violations(value, root["$defs"][rule.removeprefix("#/$defs/")], root, path)
        elif key in ("anyOf", "oneOf"):
            fitting = sum(not violations(value, option, root, path) for option in rule)
            good = fitting == 1 if key == "oneOf" else fitting >= 1
        elif key in ("enum", "const"):
            good = value in (rule if key == "enum" else [rule])
        elif key == "properties":
            for name in rule.keys() & (value if isinstance(value, dict) else {}):
                found += violations(value[name], rule[name], root, f"{path}.{name}")
        elif key == "required":
            good = not isinstance(value, dict) or set(rule) <= set(value)
        elif key == "additionalProperties":
            rest = value.keys() - schema.get("properties", {}).keys() if isinstance(value, dict) else set()
            good = rule is not False or not rest
            if isinstance(rule, dict):
                for name in rest:
                    found += violations(value[name], rule, root, f"{path}.{name}")
        elif key == "items":
            for index, item in enumerate(value if isinstance(value, list) else []):
                found += violations(item, rule, root, f"{path}[{index}]")
        elif key == "minItems":
            good = not isinstance(value, list) or len(value) >= rule
        elif key == "minProperties":
            good = not isinstance(value, dict) or len(value) >= rule
        elif key == "propertyNames":
            for name in value if isinstance(value, dict) else ():
                found += violations(name, rule, root, f"{path}.{name}")
        elif key in ("minLength", "maxLength"):
            fits = {"minLength": operator.ge, "maxLength": operator.le}[key]
            good = not isinstance(value, str) or fits(len(value), rule)
        elif key == "pattern":
            good = not isinstance(value, str) or re.search(rule, value) is not None
        elif key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            bound = {"minimum": operator.ge, "maximum": operator.le, "exclusiveMinimum": operator.gt}
            good = not isinstance(value, int | float) or bound.get(key, operator.lt)(value, rule)
        else:
            pytest.fail(f"the schema uses {key}, which this test does not know")
        if not good:
            found.append(f"{path}: {key}")
    return found


@shipped
def test_the_schema_accepts_every_shipped_recipe(file: Path) -> None:
    schema = Recipe.json_schema()
    assert violations(yaml.safe_load(file.read_text()), schema, schema) == []
    assert violations(yaml.safe_load(load_recipe(file).to_yaml()), schema, schema) == []


@settings(deadline=None)
@given(recipes)
@example({"name": "x", "method": {"name": "float", "noise_seed": 2**63 - 1}})
def test_the_schema_accepts_what_the_model_accepts(document: dict[str, Any]) -> None:
    make_recipe(document)
    schema = Recipe.json_schema()
    assert violations(json.loads(json.dumps(document)), schema, schema) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 1.5),
        ("nme", "x"),
        ("data.batchsize", 3),
        ("method.name", "flot"),
        ("method.lambda", 0.5),
        ("method.lambda_threshold", 0.3),
        ("optimizer.momentum", 1),
        ("evaluate.attacks", ["pgd"]),
        ("evaluate.lambdas", []),
        ("pipeline.compare", {"key": "seed"}),
    ],
)
def test_the_schema_refuses_what_the_model_refuses(key: str, value: Any) -> None:
    refusal(nested(key, value))
    schema = Recipe.json_schema()
    assert violations(nested(key, value), schema, schema) != []


def test_the_schema_has_the_properties_of_a_recipe_and_no_others() -> None:
    schema = Recipe.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == SECTIONS and sorted(schema["required"]) == ["method", "name"]
    sections = [schema, *schema["$defs"].values()]
    assert len(sections) == 16 and all(section["additionalProperties"] is False for section in sections)
    assert "lambda" in schema["$defs"]["PgdAtMethod"]["properties"]
    json.dumps(schema, allow_nan=False)


# Digest


def shuffled(value: Any, chance: random.Random) -> Any:
    if not isinstance(value, dict):
        return value
    keys = list(value)
    chance.shuffle(keys)
    return {key: shuffled(value[key], chance) for key in keys}


@settings(deadline=None)
@given(recipes, st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_keys(document: dict[str, Any], chance: random.Random) -> None:
    digest = make_recipe(document).digest()
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert make_recipe(shuffled(document, chance)).digest() == digest


def test_the_digest_does_not_depend_on_how_a_value_is_written() -> None:
    plain = make_recipe(smallest())
    written_out = smallest(seed=0, attack={"eps": "8/255", "steps": 7}, optimizer={"weight_decay": 0.0005})
    assert make_recipe(written_out).digest() == plain.digest()


def test_the_digest_is_that_of_before_a_field_was_added() -> None:
    class Longer(Recipe):
        added: int = 3

    document = make_recipe(smallest()).model_dump(mode="json", by_alias=True)
    longer = Longer.model_validate(document)
    assert longer.digest() == make_recipe(smallest()).digest()
    assert longer.model_copy(update={"added": 4}).digest() != longer.digest()


def test_the_digest_changes_with_every_value() -> None:
    changes = [
        "name=y", "seed=1", "data.name=cifar10", "data.root=/x", "data.batch_size=64", "data.crop_padding=1",
        "data.flip=true", "model.arch=resnet8", "method.name=standard", "method.noise=none", "method.noise_seed=1",
        "method.conditioning=interpolate", "method.lambda_threshold=0.5", "method.alpha_init=0.5", "attack.eps=7/255",
        "attack.step_size=1/255", "attack.steps=8", "attack.random_start=false", "optimizer.epochs=31",
        "optimizer.lr=0.2", "optimizer.momentum=0.8", "data.adversarial=a.npz",
        "model.weights=a", "model.mean=0.5", "model.std=0.5", "regularization={}", "regularization.kernel=l1",
        "regularization.factor=0.1", "regularization.alpha=0.1", "regularization.activation=1e-4",
        "optimizer.weight_decay=0", "evaluate.attacks=fgsm",
        "evaluate.lambdas=0", "evaluate.lambda_thresholds=0", "evaluate.conditionings=switch", "evaluate.images=9",
        "pipeline.compare={key: seed, values: [1]}",
    ]  # fmt: skip
    digests = [make_recipe(smallest(), overrides).digest() for overrides in ([], *([change] for change in changes))]
    assert len(set(digests)) == len(changes) + 1


# Hostile files


def aliases() -> str:
    """Billion laughs: nine levels of ten aliases."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(levels) + "\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must be a mapping"),
        (b"- 1\n", "must be a mapping"),
        (b"just text", "must be a mapping"),
        (b"name: [1, 2\nseed: }", "no valid YAML at line 2"),
        (b"name: x\x00", "no valid YAML: special characters"),
        (b"\xff\xfe\x00\xd8", "no UTF-8"),
        (b"name: \xe9\n", "no UTF-8"),
        (SMALLEST.encode() + aliases().encode(), "at line 4: aliases"),
        (b"a: &a [*a]\n" + SMALLEST.encode(), "at line 1: aliases"),
        (b"&a\nname: *a\n", "at line 2: aliases"),
        (b"[" * 100_000, "too deeply nested"),
        (b"name: " + b"[" * 5000 + b"]" * 5000, "too deeply nested"),
        (b"? [a, b]\n: 2\n", "no valid YAML at line 1"),
        (SMALLEST.encode() + b"2020-01-01: 3\n", "datetime.date"),
        (SMALLEST.encode() + b"seed: 2020-13-45\n", "no valid YAML"),
        (SMALLEST.encode() + b"seed: " + b"9" * 6000, "no valid YAML"),
        (SMALLEST.encode() + b"seed: 0x" + b"f" * 40_000, "holds what a recipe cannot"),
        (b"name: " + b"x" * 100_000 + b"\nmethod: {name: float}\n", "name (='xxx"),
        (SMALLEST.encode() + b"x" * 1000 + b": 1\n", "unknown key xxx"),
        (SMALLEST.encode() + b"? " + b"y" * 5000 + b"\n: 1\n", "unknown key yyy"),
        (SMALLEST.encode() + b"1: 2\n", "unknown key 1"),
        (SMALLEST.encode() + b'"a\\nb": 2\n', "unknown key a b"),
    ],
    ids=range(22),
)
def test_a_hostile_file_is_refused_in_one_line(content: bytes, words: str, recipe_file: Path) -> None:
    recipe_file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file)
    message = one_line(caught.value)
    assert str(recipe_file) in message and words in message


def test_python_tags_are_refused_and_run_nothing(recipe_file: Path, tmp_path: Path) -> None:
    proof = tmp_path / "owned"
    recipe_file.write_text(f"name: !!python/object/apply:os.system ['touch {proof}']\nmethod: {{name: float}}\n")
    with pytest.raises(RecipeError, match="no valid YAML at line 1.*python/object/apply:os.system"):
        load_recipe(recipe_file)
    with pytest.raises(RecipeError, match="no valid YAML"):
        make_recipe(smallest(), [f"name=!!python/object/apply:os.system ['touch {proof}']"])
    assert not proof.exists()


def test_a_file_may_have_a_mebibyte_and_not_a_byte_more(recipe_file: Path) -> None:
    padding = "#" * (2**20 - len(SMALLEST))
    recipe_file.write_text(SMALLEST + padding)
    assert load_recipe(recipe_file).name == "x"
    recipe_file.write_text(SMALLEST + padding + "#")
    with pytest.raises(RecipeError, match="1048577 bytes; at most 1048576"):
        load_recipe(recipe_file)


def test_absent_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml cannot be read: No such file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)


@settings(deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_file_gives_a_recipe_or_a_recipe_error(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "any-recipe.yaml"
    file.write_bytes(
        SMALLEST.encode() + (content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    )
    try:
        assert load_recipe(file).method.name == "float"
    except RecipeError as error:
        one_line(error)
