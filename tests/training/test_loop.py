"""The loop: it learns, it repeats to the bit, and a killed run continues to the same weights."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from deploytool.errors import LabelError, RunError
from deploytool.recipe import Recipe, make_recipe
from deploytool.training import loop
from deploytool.training.loop import cosine_lr, train
from deploytool.training.run import load_checkpoint, load_run, save_checkpoint

LABELS = Path(__file__).parents[2] / "recipes" / "labels" / "digits.yaml"

METHODS = {
    "standard": {"name": "standard"},
    "pgd-at": {"name": "pgd-at", "lambda": 0.5},
    "float": {"name": "float", "noise": "redrawn"},
}


def recipe(method: str = "float", epochs: int = 2, **changes: object) -> Recipe:
    document = {
        "name": "small",
        "method": METHODS[method],
        "model": {"arch": "resnet8"},
        "data": {"name": "digits", "batch_size": 64, "crop_padding": 1},
        "attack": {"eps": 0.2, "step_size": 0.1, "steps": 1},
        "optimizer": {"epochs": epochs, "lr": 0.1},
    }
    return make_recipe(document | changes)


def assert_same_bits(first: Path, second: Path) -> None:
    a, b = load_checkpoint(first), load_checkpoint(second)
    assert a.epochs == b.epochs and a.history == b.history
    for mine, theirs in ((a.model, b.model), (a.momentum, b.momentum)):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_of_one_recipe_are_the_same_bits(method: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        train(recipe(method, epochs=1), tmp_path / name)
    assert_same_bits(tmp_path / "first", tmp_path / "second")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(recipe("standard", epochs=1, seed=seed), tmp_path / str(seed))
    a, b = (load_checkpoint(tmp_path / str(seed)).model["backbone.conv1.weight"] for seed in (0, 1))
    assert not torch.equal(a, b)


def test_it_learns_digits_and_says_so(trained_run, tmp_path: Path) -> None:
    history = trained_run.checkpoint.history
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["train_clean_accuracy"] > 0.9 > history[0]["train_robust_accuracy"]
    assert json.loads((trained_run.path / "metrics.json").read_text()) == history
    assert len(history[-1]["alpha"]) == len(trained_run.model.alpha)


def test_the_result_has_the_contracts_keys(tmp_path: Path) -> None:
    result = train(recipe("standard", epochs=1), tmp_path / "run")
    assert {"run", "epochs", "seconds", "clean_accuracy", "robust_accuracy"} <= set(result)
    assert result["epochs"] == 1 and 0.3 < result["clean_accuracy"] <= 1


def test_tensorboard_gets_every_epoch(trained_run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(trained_run.path / "tensorboard"))
    log.Reload()
    assert {"loss", "lr", "train_clean_accuracy", "train_robust_accuracy", "alpha/0"} <= set(log.Tags()["scalars"])
    assert [event.step for event in log.Scalars("loss")] == [1, 2]


def test_a_run_killed_in_mid_epoch_continues_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL somewhere in epoch 3 of 4; the resumed run must equal one that was never disturbed, bit for bit."""
    whole = recipe("float", epochs=4)
    (tmp_path / "recipe.yaml").write_text(whole.to_yaml())
    killed = tmp_path / "killed"
    code = (
        "import os, sys, torch; torch.set_num_threads(1)\n"
        "from deploytool.recipe import load_recipe\n"
        "from deploytool.training import loop\n"
        "step, count = loop.training_step, [0]\n"
        "def counting(*arguments):\n"
        "    count[0] += 1\n"
        "    if count[0] == 2 * 20 + 7: print('now', flush=True); sys.stdin.read()\n"
        "    return step(*arguments)\n"
        "loop.training_step = counting\n"
        f"loop.train(load_recipe({str(tmp_path / 'recipe.yaml')!r}), {str(killed)!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdin.close()
    process.stdout.close()
    assert load_checkpoint(killed).epochs == 2

    train(whole, killed, resume=True)
    train(whole, tmp_path / "undisturbed")
    assert_same_bits(killed, tmp_path / "undisturbed")
    assert not [path for path in killed.iterdir() if path.name.endswith(".tmp")]


def test_killed_again_and_again_at_any_moment(tmp_path: Path) -> None:
    """The real command, killed at arbitrary times until it gets through; never a damaged checkpoint on the way."""
    whole = recipe("standard", epochs=6)
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(whole.to_yaml())
    command = [
        sys.executable,
        "-m",
        "deploytool",
        "train",
        str(file),
        "-o",
        str(run),
        "--resume",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before = epochs_done(run)
        deadline = time.monotonic() + 200
        while process.poll() is None and epochs_done(run) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert epochs_done(run) > before or process.returncode == 0
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    train(whole, tmp_path / "undisturbed")
    assert_same_bits(run, tmp_path / "undisturbed")


def epochs_done(run: Path) -> int:
    return load_checkpoint(run).epochs if (run / "checkpoint.safetensors").exists() else 0


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    small = recipe("standard", epochs=1)
    train(small, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    train(small, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_a_run_with_reasons_resumes_to_the_same_bits_without_its_label_map(tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text(LABELS.read_text())
    document = recipe("standard", epochs=3).model_dump(mode="json", by_alias=True)
    whole = make_recipe(document | {"reasoning": {"labels": str(file), "every": 2}, "evaluate": {"images": 50}})
    train(whole, tmp_path / "once")
    with pytest.MonkeyPatch.context() as patch:
        saved = []

        def save(*arguments: Any) -> None:
            save_checkpoint(*arguments)
            saved.append(arguments)
            if len(saved) == 2:
                raise KeyboardInterrupt

        patch.setattr(loop, "save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            train(whole, tmp_path / "twice")
    file.unlink()
    train(whole, tmp_path / "twice", resume=True)
    assert_same_bits(tmp_path / "once", tmp_path / "twice")
    history = load_run(tmp_path / "twice").checkpoint.history
    assert [metrics["epoch"] for metrics in history if "consistency" in metrics] == [2, 3]
    with pytest.raises(LabelError, match="cannot be read"):
        train(whole, tmp_path / "anew")
    assert not (tmp_path / "anew").exists()


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    small = recipe("standard", epochs=1)
    train(small, tmp_path / "run")
    with pytest.raises(RunError, match="--resume"):
        train(small, tmp_path / "run")
    with pytest.raises(RunError, match="optimizer.lr 0.1 -> 0.2"):
        train(recipe("standard", epochs=1, optimizer={"epochs": 1, "lr": 0.2}), tmp_path / "run", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    (tmp_path / "other" / ".thesis.1.tmp").write_text("an editor's")
    with pytest.raises(RunError, match="no run of deploytool"):
        train(small, tmp_path / "other")
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "other" / ".thesis.1.tmp").exists()


def test_a_first_attempt_that_failed_does_not_block_the_folder(tmp_path: Path) -> None:
    """A recipe without any checkpoint is nothing to lose: the mended recipe takes its place."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("deploytool.training.loop.training_step", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        train(recipe("standard", epochs=1), run)
    assert (run / "recipe.yaml").exists()
    train(recipe("standard", epochs=1, seed=7), run)
    assert load_run(run).recipe.seed == 7


def test_the_result_is_that_of_the_network_that_is_deployed(tmp_path: Path) -> None:
    """With redrawn noise too: the same figures as `evaluate`, and the same again."""
    from deploytool.evaluation import evaluate, evaluation_settings

    small = recipe("float", epochs=1)
    first = train(small, tmp_path / "run")
    again = train(small, tmp_path / "run", resume=True)
    run = load_run(tmp_path / "run")
    rows = evaluate(run, ["pgd-1"], evaluation_settings(small, [0.0, 1.0], [0.0])).rows
    assert first["robust_accuracy"] == again["robust_accuracy"] == rows[1]["robust_accuracy"]
    assert first["clean_accuracy"] == again["clean_accuracy"] == rows[0]["clean_accuracy"]


def test_a_resumed_run_takes_the_threads_of_its_checkpoint(tmp_path: Path) -> None:
    small = recipe("standard", epochs=1)
    train(small, tmp_path / "run")
    torch.set_num_threads(2)
    try:
        train(small, tmp_path / "run", resume=True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_a_loss_that_explodes_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    wild = recipe("standard", epochs=3, optimizer={"epochs": 3, "lr": 100})
    run = tmp_path / "run"
    train(recipe("standard", epochs=3), run)
    import deploytool.training.loop as loop

    original = loop.training_step

    def explode(*arguments):
        step = original(*arguments)
        return type(step)(step.loss * math.nan, step.clean, step.robust)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", explode)
        with pytest.raises(RunError, match=r"lower optimizer.lr \(=100\)"):
            train(wild, tmp_path / "wild")
    assert not (tmp_path / "wild" / "checkpoint.safetensors").exists()
    assert load_run(run).checkpoint.epochs == 3


def test_cosine_decay_by_hand() -> None:
    assert cosine_lr(0.2, 0, 100) == pytest.approx(0.2)
    assert cosine_lr(0.2, 50, 100) == pytest.approx(0.1)
    assert cosine_lr(0.2, 25, 100) == pytest.approx(0.1 * (1 + math.sqrt(0.5)))
    assert 0 <= cosine_lr(0.2, 99, 100) < 1e-3


def test_weight_decay_spares_norms_and_alphas(trained_run) -> None:
    from deploytool.training.loop import make_optimizer

    optimizer = make_optimizer(trained_run.model, trained_run.recipe)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in trained_run.model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.dim() > 1), name
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_dropout_repeats_and_resumes_too(tmp_path: Path) -> None:
    """VGG-16 drops activations by torch's own generator, which must not carry over from anything before."""
    small = recipe("standard", epochs=2, model={"arch": "vgg16", "widths": [1.0]}, data={"batch_size": 400})
    train(small, tmp_path / "whole")
    torch.rand(17)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("deploytool.training.loop.log_scalars", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        train(small, tmp_path / "stopped")
    assert load_checkpoint(tmp_path / "stopped").epochs == 1
    train(small, tmp_path / "stopped", resume=True)
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")
