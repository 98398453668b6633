"""The table of what a rule of acceptance makes of attacks."""

from deploytool.report.acceptance import RATES, acceptance_table

ROW = {
    "attack": "pgd-20", "lambda": None, "lambda_threshold": None, "conditioning": None, "noise": None, "width": 1.0,
    "reasoning_threshold": 0.9, "coverage": 0.5,
    "accuracy_accepted": 0.25, "robust_accuracy": 0.125, "undetected_rate": 0.0, "detection_rate": 1.0,
    "detection_rate_changed": None, "robust_accuracy_accepted": 0.75, "rejected_rate": 0.3,
}  # fmt: skip


def test_every_rate_has_a_column_and_what_is_of_nobody_a_dash() -> None:
    heads, _, line = acceptance_table([ROW]).splitlines()[:3]
    assert line.split() == ["pgd-20", "0.250", "0.500", "0.125", "0.000", "1.000", "-", "0.750"]
    assert all(name in heads for name in RATES.values()) and "lambda" not in heads
    assert "t_rsn 0.9." in acceptance_table([ROW])


def test_settings_are_named_where_they_differ() -> None:
    rows = [{**ROW, "lambda": lam, "width": width} for lam in (0.0, 0.2) for width in (0.5, 1.0)]
    heads, _, *lines = acceptance_table(rows).split("\n\n")[0].splitlines()
    assert heads.split()[:3] == ["attack", "lambda", "width"]
    assert [line.split()[1:3] for line in lines] == [["0", "0.5"], ["0", "1"], ["0.2", "0.5"], ["0.2", "1"]]


def test_rows_of_one_attack_can_be_told_apart() -> None:
    """As `evaluate --adaptive` gives them for FLOAT at one lambda."""
    knobs = ("conditioning", "lambda_threshold", "noise", "lambda")
    settings = [
        ("switch", 0.0, "frozen", 0.2), ("switch", 0.5, "frozen", 0.2), ("interpolate", None, "frozen", 0.2),
        ("interpolate", None, "redrawn", None),
    ]  # fmt: skip
    rows = [{**ROW, **dict(zip(knobs, setting, strict=True))} for setting in settings]
    heads, _, *lines = acceptance_table(rows).split("\n\n")[0].splitlines()
    assert heads.split()[:5] == ["attack", "conditioning", "threshold", "noise", "lambda"]
    assert [line.split()[1:5] for line in lines] == [
        ["switch", "0", "frozen", "0.2"], ["switch", "0.5", "frozen", "0.2"], ["interpolate", "-", "frozen", "0.2"],
        ["interpolate", "-", "redrawn", "-"],
    ]  # fmt: skip
