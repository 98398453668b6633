"""Profiles: the shipped one, overrides, and files that must not be believed."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from hwmodels.errors import ProfileError
from hwmodels.profile import FOLDER, UNITS, Profile, load_profile


@pytest.fixture
def document() -> dict:
    return yaml.safe_load((FOLDER / "asic-65nm.yaml").read_text())


def write(folder: Path, document: object) -> Path:
    file = folder / "chip.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_profile_loads_and_names_its_sources(file: Path) -> None:
    load_profile(file.stem)
    for key, entry in yaml.safe_load(file.read_text())["constants"].items():
        assert entry["unit"] == UNITS[key] and len(entry["source"]) > 10


def test_the_65_nm_constants_of_the_paper() -> None:
    profile = load_profile("asic-65nm")
    assert (profile.tau_read_ns, profile.tau_mult_ns) == (9, 4)
    assert (profile.b_io, profile.n_bank, profile.n_mult, profile.b_w) == (64, 4, 175, 32)


def test_overrides_take_numbers_and_strings() -> None:
    profile = load_profile("asic-65nm").override({"b_w": "8", "n_mult": 350, "tau_read_ns": "4.5"})
    assert (profile.b_w, profile.n_mult, profile.tau_read_ns) == (8, 350, 4.5)
    assert profile.b_io == 64


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
        ("voltage", 3, "unknown"),
    ],
)
def test_constants_that_are_not_physical_are_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        load_profile("asic-65nm").override({key: value})


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
    assert profile == Profile("asic-65nm", 64, 32, 4, 175, 9, 4)
