"""Text tables, checked against tables worked out by hand."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from deploytool.report.tables import accuracy_table, alpha_table, comparison_table, key_values, prediction_table


def row(attack: str, lam: float | None, clean: float, robust: float, **more: Any) -> dict[str, Any]:
    plain = lam is None
    return {
        "attack": attack, "width": 1.0, "lambda": lam, "lambda_threshold": None if plain else 0.5,
        "conditioning": None if plain else "switch", "clean_accuracy": clean, "robust_accuracy": robust, **more,
    }  # fmt: skip


def cells(table: str) -> list[list[str]]:
    """Cells of a `github` table, the line under its head left out."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert set("".join(lines[1])) <= set("-:")
    return [lines[0], *lines[2:]]


def test_accuracy_has_a_line_per_setting_and_a_column_per_attack() -> None:
    rows = [
        row("fgsm", 0.0, 0.9, 0.5), row("fgsm", 1.0, 0.85, 0.7),
        row("pgd-7", 0.0, 0.9, 0.25), row("pgd-7", 1.0, 0.85, 0.6666),
    ]  # fmt: skip
    assert cells(accuracy_table(rows, "github")) == [
        ["conditioning", "threshold", "lambda", "clean", "fgsm", "pgd-7"],
        ["switch", "0.5", "0", "0.900", "0.500", "0.250"],
        ["switch", "0.5", "1", "0.850", "0.700", "0.667"],
    ]


def test_settings_of_one_lambda_stay_apart() -> None:
    rows = [
        row("fgsm", 0.2, 0.9, 0.5),
        row("fgsm", 0.2, 0.8, 0.4, lambda_threshold=0.0),
        row("fgsm", 0.2, 0.7, 0.3, lambda_threshold=None, conditioning="interpolate"),
    ]
    assert [line[:5] for line in cells(accuracy_table(rows, "github"))[1:]] == [
        ["switch", "0.5", "0.2", "0.900", "0.500"],
        ["switch", "0", "0.2", "0.800", "0.400"],
        ["interpolate", "-", "0.2", "0.700", "0.300"],
    ]


def test_a_method_without_lambda_has_dashes() -> None:
    table = cells(accuracy_table([row("fgsm", None, 1.0, 0.0)], "github"))
    assert table[1] == ["-", "-", "-", "1.000", "0.000"]


def test_the_comparison_has_clean_and_robust_per_lambda() -> None:
    rows = [
        row("pgd-7", 0.0, 0.9, 0.5, value="frozen"), row("pgd-7", 1.0, 0.8, 0.6, value="frozen"),
        row("pgd-7", 0.0, 0.7, 0.4, value="none"),
    ]  # fmt: skip
    assert cells(comparison_table(rows, "method.noise", "github")) == [
        ["method.noise", "conditioning", "threshold", "lambda 0", "lambda 1"],
        ["frozen", "switch", "0.5", "0.900 / 0.500", "0.800 / 0.600"],
        ["none", "switch", "0.5", "0.700 / 0.400", ""],
    ]


def test_alphas_have_a_line_per_layer_also_where_the_networks_differ() -> None:
    table = alpha_table({"resnet8": {"conv1": 0.25}, "resnet20": {"conv1": -0.1, "conv2": 0.12345}}, "arch", "github")
    assert cells(table) == [
        ["alpha of layer", "arch resnet8", "arch resnet20"],
        ["conv1", "0.250", "-0.100"],
        ["conv2", "", "0.123"],
    ]


def test_predictions_list_the_next_best_classes() -> None:
    top = [
        {"class": "cat", "probability": 0.75},
        {"class": "dog", "probability": 0.2},
        {"class": "3", "probability": 0.05},
    ]
    table = prediction_table([{"image": "a.png", "class": "cat", "probability": 0.75, "top": top}])
    head, _, line = table.splitlines()
    assert head.split() == ["image", "class", "probability", "next"]
    assert line.split() == ["a.png", "cat", "0.750", "dog", "0.200,", "3", "0.050"]


def test_numbers_that_are_names_stay_as_they_are() -> None:
    table = prediction_table([{"image": "1e3", "class": "007", "probability": 1.0, "top": []}])
    assert table.splitlines()[2].split() == ["1e3", "007", "1.000"]


def test_nested_results_get_dotted_keys() -> None:
    document = {"file": "m.onnx", "parity": {"cases": 20, "deep": {"error": 0.00001234567}}, "vs": None, "empty": {}}
    document |= {"outputs": ["logits", "reasoning"], "numbers": [1, 2]}
    assert [line.split() for line in key_values(document).splitlines()] == [
        ["file", "m.onnx"], ["parity.cases", "20"], ["parity.deep.error", "1.23457e-05"], ["vs", "None"],
        ["outputs", "logits,", "reasoning"], ["numbers", "[1,", "2]"],
    ]  # fmt: skip


words = st.text("abcdefghij", min_size=1, max_size=8)
documents = st.dictionaries(
    words,
    st.recursive(st.integers() | words, lambda inner: st.dictionaries(words, inner, min_size=1, max_size=3)),
    min_size=1,
)


@settings(deadline=None)
@given(documents)
def test_every_leaf_of_a_result_has_its_line(document: dict[str, Any]) -> None:
    leaves: list[list[str]] = []
    waiting: list[tuple[tuple[str, ...], Any]] = [((key,), value) for key, value in reversed(document.items())]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*path, key), inner) for key, inner in reversed(value.items())]
        else:
            leaves.append([".".join(path), str(value)])
    assert [line.split() for line in key_values(document).splitlines()] == leaves


def test_widths_are_told_apart_where_there_are_several() -> None:
    rows = [row("fgsm", 1.0, 0.9, 0.5), {**row("fgsm", 1.0, 0.8, 0.4), "width": 0.5}]
    assert cells(accuracy_table(rows, "github")) == [
        ["width", "conditioning", "threshold", "lambda", "clean", "fgsm"],
        ["1", "switch", "0.5", "1", "0.900", "0.500"],
        ["0.5", "switch", "0.5", "1", "0.800", "0.400"],
    ]
