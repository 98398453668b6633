"""Profiles: the shipped one, overrides, and files that must not be believed."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from hwmodels.energy import energy_costs, missing_energies
from hwmodels.errors import ProfileError
from hwmodels.profile import FOLDER, Profile, load_profile, shipped_profiles, unit


@pytest.fixture
def document() -> dict:
    return yaml.safe_load((FOLDER / "asic-65nm.yaml").read_text())


def write(folder: Path, document: object) -> Path:
    file = folder / "chip.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_profile_loads_and_names_its_sources(file: Path) -> None:
    profile = load_profile(file.stem)
    document = yaml.safe_load(file.read_text())
    assert document["name"] == profile.name == file.stem and file.stem in shipped_profiles()
    assert profile.constants() == {key: entry["value"] for key, entry in document["constants"].items()}
    for key, entry in document["constants"].items():
        assert entry["unit"] == unit(key) and len(entry["source"]) > 10 and profile.to_dict()["sources"][key]


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_answers_something_and_says_what_not(name: str) -> None:
    profile = load_profile(name)
    answers = {"times": profile.chip() is not None, "energies": energy_costs(profile) is not None}
    assert any(answers.values())
    assert bool(missing_energies(profile)) != answers["energies"]


def test_horowitz_fig_1_1_9() -> None:
    """M. Horowitz, ISSCC 2014, Fig. 1.1.9: 45 nm, 0.9 V; of integers and floats by bits, and of 64-bit accesses."""
    profile = load_profile("horowitz-45nm")
    energies = profile.energies
    assert [energies[f"add_{name}_pj"] for name in ("int8", "int32", "fp16", "fp32")] == [0.03, 0.1, 0.4, 0.9]
    assert [energies[f"mult_{name}_pj"] for name in ("int8", "int32", "fp16", "fp32")] == [0.2, 3.1, 1.1, 3.7]
    assert profile.levels() == ("sram_8kb", "sram_32kb", "sram_1mb", "dram")
    assert [energies[f"read_{level}_pj"] for level in profile.levels()] == [10, 20, 100, 1300]
    assert profile.chip() is None and len(energies) == 12 and any("2.6 nJ" in remark for remark in profile.remarks)


def test_the_65_nm_constants_of_the_paper() -> None:
    profile = load_profile("asic-65nm")
    assert (profile.tau_read_ns, profile.tau_mult_ns) == (9, 4)
    assert (profile.b_io, profile.n_bank, profile.n_mult, profile.b_w) == (64, 4, 175, 32)


def test_overrides_take_numbers_and_strings() -> None:
    profile = load_profile("asic-65nm").override({"b_w": "8", "n_mult": 350, "tau_read_ns": "4.5"})
    assert (profile.b_w, profile.n_mult, profile.tau_read_ns) == (8, 350, 4.5)
    assert profile.b_io == 64 and profile.sources["b_w"] == "set by the caller" != profile.sources["b_io"]


def test_times_may_be_added_all_together(tmp_path: Path) -> None:
    times = {"b_io": 64, "n_bank": 4, "n_mult": 175, "tau_read_ns": 9, "tau_mult_ns": 4}
    both = load_profile("horowitz-45nm").override(times)
    assert both.chip() == load_profile("asic-65nm").override({"b_w": 8}).chip()
    with pytest.raises(ProfileError, match="horowitz-45nm lacks b_io, tau_read_ns, tau_mult_ns"):
        load_profile("horowitz-45nm").override({"n_mult": 175, "n_bank": 4})


def test_a_second_profile_lends_what_the_first_lacks() -> None:
    asic, horowitz = load_profile("asic-65nm"), load_profile("horowitz-45nm")
    both = asic.completed_by(horowitz)
    assert both.chip() == asic.chip() and both.energies == horowitz.energies and both.b_w == 32
    assert both.name == "asic-65nm+horowitz-45nm" and both.remarks == horowitz.remarks
    assert both.sources["b_w"] == asic.sources["b_w"] and both.sources["mult_int8_pj"]
    turned = horowitz.completed_by(asic)
    assert turned.b_w == 8 and turned.n_mult == 175 and turned.weights_from == "dram"
    assert asic.completed_by(asic) == asic and both.completed_by(asic) == both


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("n_mult", 0, "positive integer"),
        ("n_mult", "4.5", "positive integer"),
        ("n_mult", "many", "must be a number"),
        ("n_mult", True, "must be a number"),
        ("n_mult", "1e99", "positive integer"),
        ("tau_read_ns", -1, "positive number"),
        ("tau_read_ns", "nan", "must be a number"),
        ("tau_mult_ns", "inf", "must be a number"),
        ("b_w", 65, "1..64"),
        ("n_mul", 3, "did you mean n_mult"),
        ("b_w", 80, r"b_w \(=80\) must be in 1..64 bit"),
        ("b_w", -8, "positive integer"),
        ("voltage", 3, "unknown"),
        ("mult_int7_pj", 3, "unknown"),
        ("mult_int8_pj", -0.2, "positive number"),
        ("read_dram_pj", 0, "positive number"),
        ("read_darm_pj", 1, "did you mean read_dram_pj"),
        ("activations_in", "sram_1mib", r"activations_in \(=sram_1mib\) must be one of sram_8kb, "),
    ],
)
def test_constants_that_are_not_physical_are_refused(key: str, value: object, words: str) -> None:
    profile = load_profile("asic-65nm").completed_by(load_profile("horowitz-45nm"))
    with pytest.raises(ProfileError, match=words) as caught:
        profile.override({key: value})
    assert "\n" not in str(caught.value)


def test_a_profile_of_ones_own(tmp_path: Path, document: dict) -> None:
    document["name"] = "mine"
    document["constants"]["n_mult"]["value"] = 12
    assert load_profile(write(tmp_path, document)).n_mult == 12


def test_files_that_lack_something_are_refused(tmp_path: Path, document: dict) -> None:
    for change, words in [
        (lambda d: d["constants"].pop("b_io"), "lacks b_io"),
        (lambda d: d["constants"]["b_io"].pop("source"), "b_io must have value, unit and source"),
        (lambda d: d["constants"]["b_io"].update(unit="byte"), "unit 'byte'"),
        (lambda d: d["constants"].update(b_iq=1), "did you mean b_io"),
        (lambda d: d.pop("constants"), "mapping `constants`"),
        (lambda d: d["constants"].pop("b_w"), "lacks b_w"),
        (lambda d: d["constants"]["b_io"].update(source=" "), "source of b_io is empty"),
        (lambda d: d["constants"]["b_io"].update(value=-64), "positive integer"),
        (lambda d: d.update(remarks="none"), "remarks must be a list"),
        (lambda d: d.update(weight_from="dram"), "did you mean weights_from"),
        (lambda d: d["constants"].update(mult_int9_pj=1), "did you mean mult_int"),
    ]:
        broken = yaml.safe_load(yaml.safe_dump(document))
        change(broken)
        with pytest.raises(ProfileError, match=words):
            load_profile(write(tmp_path, broken))


@pytest.mark.parametrize(
    "content",
    [b"", b"- 1\n- 2\n", b"a: [", b"\xff\xfe\x00", b"!!python/object/apply:os.system [ls]", b"x: " + b"[" * 5000],
)
def test_hostile_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "chip.yaml"
    file.write_bytes(content)
    with pytest.raises(ProfileError):
        load_profile(file)


def test_absent_and_oversized_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="shipped: asic-65nm"):
        load_profile("asic-7nm")
    with pytest.raises(ProfileError, match="No such file"):
        load_profile(tmp_path / "none.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(ProfileError, match="at most"):
        load_profile(tmp_path / "big.yaml")


def test_profiles_are_values() -> None:
    profile = load_profile("asic-65nm")
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.b_w = 8
    assert profile == Profile("asic-65nm", b_w=32, b_io=64, n_bank=4, n_mult=175, tau_read_ns=9, tau_mult_ns=4)


def test_a_profile_with_energies_must_say_where_values_are(tmp_path: Path) -> None:
    document = yaml.safe_load((FOLDER / "horowitz-45nm.yaml").read_text())
    for change, words in [
        (lambda d: d.pop("weights_from"), r"weights_from \(=None\) must be one of dram, "),
        (lambda d: d.update(activations_in="dram2"), r"activations_in \(=dram2\) must be one of"),
        (lambda d: d["constants"]["read_dram_pj"].update(unit="pJ"), "must be 'pJ per 64 bit'"),
        (lambda d: d["constants"]["mult_int8_pj"].update(unit="nJ"), "must be 'pJ'"),
    ]:
        broken = yaml.safe_load(yaml.safe_dump(document))
        change(broken)
        with pytest.raises(ProfileError, match=words):
            load_profile(write(tmp_path, broken))


def test_names_close_to_a_shipped_one_are_proposed() -> None:
    with pytest.raises(
        ProfileError, match=r"'horowitz-45'\) is unknown; did you mean horowitz-45nm\? shipped: asic-65nm"
    ):
        load_profile("horowitz-45")
    with pytest.raises(ProfileError, match="did you mean asic-65nm"):
        load_profile("ASIC-65nm")


def test_units_are_those_of_the_names() -> None:
    assert unit("mult_int8_pj") == unit("add_fp64_pj") == "pJ" and unit("read_l2_pj") == "pJ per 64 bit"
    assert unit("n_bank") == "memory banks" and unit("voltage") is None
