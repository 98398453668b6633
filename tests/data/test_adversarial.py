"""Adversarial images in the training set: exact, truly labelled, repeatable; what does not fit is one line."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import run_attack
from deploytool.attacks.store import save_adversarial
from deploytool.data.adversarial import with_adversarial
from deploytool.data.batches import training_batches
from deploytool.data.catalogue import DatasetInfo
from deploytool.data.datasets import load_dataset
from deploytool.data.images import Dataset, Images, JoinedImages, as_unit
from deploytool.digests import state_digest
from deploytool.errors import DataError, RunError
from deploytool.recipe import DataSection, Recipe, make_recipe
from deploytool.training.loop import train
from deploytool.training.run import Run, load_checkpoint

INFO = DatasetInfo("tiny", (2, 3, 4), ("a", "b", "c"), (0.5, 0.5), (0.2, 0.2))


def tiny(count: int = 20, dtype: torch.dtype = torch.uint8) -> Dataset:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (count + 5, 2, 3, 4), dtype=torch.uint8, generator=generator)
    pixels = pixels if dtype == torch.uint8 else as_unit(pixels)
    labels = torch.randint(0, 3, (count + 5,), generator=generator)
    return Dataset(INFO, Images(pixels[:count], labels[:count]), Images(pixels[count:], labels[count:]))


def save(path: Path, image: Tensor, label: Tensor, adversarial: Tensor) -> str:
    """A file as the store writes it, of whatever images an attack may have found."""
    result = run_attack(lambda x: x.flatten(1)[:, :3] - 0.5, image.clamp(0, 1), label % 3, Pgd(0.1, 0.1, 1))
    distance = (adversarial - image).abs().flatten(1).amax(1)
    save_adversarial(path, replace(result, image=adversarial, distance=distance), image, label, "digest")
    return str(path)


def shifted(data: Dataset, rows: slice, path: Path, to: float = 0.123456) -> tuple[str, Tensor, Tensor]:
    image, label = data.train.batch(rows)
    adversarial = (image * 0.8 + to * 0.2).clamp(0, 1)
    return save(path, image, label, adversarial), adversarial, label


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_values_are_exact_and_nothing_grows(dtype: torch.dtype, tmp_path: Path) -> None:
    data = tiny(dtype=dtype)
    files, adversarial, labels = zip(
        shifted(data, slice(0, 6), tmp_path / "a.npz"), shifted(data, slice(3, 20), tmp_path / "b.npz", 1), strict=True
    )
    joined = with_adversarial(data, files)
    assert len(joined) == 20 + 6 + 17
    assert joined.parts[0] is data.train and joined.parts[0].images.dtype == dtype
    image, label = joined.batch(torch.arange(43))
    assert torch.equal(image, torch.cat([as_unit(data.train.images), *adversarial])) and image.dtype == torch.float32
    assert torch.equal(label, torch.cat([data.train.labels, *labels])) and label.dtype == torch.int64


def test_without_files_the_images_are_the_data_sets_own() -> None:
    data = tiny()
    assert with_adversarial(data, []) is data.train


@given(st.lists(st.integers(0, 12), max_size=30))
def test_any_rows_in_any_order(rows: list[int]) -> None:
    """As if all images had been one float32 tensor."""
    data = tiny(8)
    parts = (
        data.train,
        Images(torch.rand(1, 2, 3, 4), torch.tensor([1])),
        Images(torch.rand(4, 2, 3, 4), torch.arange(4)),
    )
    whole = Images(torch.cat([as_unit(part.images) for part in parts]), torch.cat([part.labels for part in parts]))
    index = torch.tensor(rows, dtype=torch.int64)
    for mine, theirs in zip(JoinedImages(parts).batch(index), whole.batch(index), strict=True):
        assert torch.equal(mine, theirs)


def test_an_epoch_sees_every_image_once(tmp_path: Path) -> None:
    data = tiny()
    file, adversarial, _ = shifted(data, slice(0, 20), tmp_path / "a.npz")
    section = DataSection(batch_size=8)
    batches = training_batches(with_adversarial(data, [file]), section, torch.Generator(), torch.device("cpu"))
    seen = torch.cat([image for image, _ in batches]).flatten(1)
    expected = torch.cat([as_unit(data.train.images), adversarial]).flatten(1)
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, expected.tolist()))


def refusal(data: Dataset, file: Any) -> str:
    with pytest.raises(DataError) as caught:
        with_adversarial(data, [str(file)])
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    data = tiny()
    image, label = data.train.batch(slice(0, 4))
    other = torch.rand(4, 2, 3, 5)
    assert "holds images of (2, 3, 5); tiny has (2, 3, 4)" in refusal(
        data, save(tmp_path / "s.npz", other, label, other)
    )
    assert "labels up to 3; tiny has classes 0 to 2" in refusal(
        data, save(tmp_path / "l.npz", image, label * 0 + 3, image)
    )
    outside = save(tmp_path / "o.npz", image, label, image + 1)
    assert "images are in [0, 1]" in refusal(data, outside)
    assert "cannot be read" in refusal(data, tmp_path / "absent.npz")
    for content in (b"", b"PK\x03\x04" + bytes(40), b"\x93NUMPY"):
        (tmp_path / "g.npz").write_bytes(content)
        assert "no adversarial examples" in refusal(data, tmp_path / "g.npz")
    np.savez(tmp_path / "p.npz", image=np.array([object()], dtype=object))
    assert "no adversarial examples" in refusal(data, tmp_path / "p.npz")


def test_attacks_on_test_images_are_refused(tmp_path: Path) -> None:
    """Training on them, truly labelled, would give the test away; an image that is in both sets is no leak."""
    data = tiny()
    image, label = data.test.batch(slice(0, 5))
    file = save(tmp_path / "t.npz", image, label, image * 0.9)
    assert "5 images of" in refusal(data, file) and "attack training images instead" in refusal(data, file)
    both = Dataset(INFO, Images(torch.cat([data.train.images, data.test.images]), torch.zeros(25).long()), data.test)
    assert len(with_adversarial(both, [file])) == 30


@pytest.fixture(scope="module")
def digits_file(plain_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real attack of a real network on training images of digits."""
    image, label = load_dataset(DataSection(name="digits")).train.batch(slice(0, 200))
    network = plain_run.model.plain_network(plain_run_setting())
    result = run_attack(network, image, label, Pgd(0.2, 0.1, 2), name="pgd-2")
    path = tmp_path_factory.mktemp("adversarial") / "digits.npz"
    save_adversarial(path, result, image, label, state_digest(network.state_dict()))
    return path


def plain_run_setting() -> Any:
    from deploytool.models.setting import Setting

    return Setting(noise="none")


def retraining(file: Path) -> Recipe:
    return make_recipe(
        {
            "name": "x",
            "data": {"batch_size": 128, "adversarial": [str(file)]},
            "model": {"arch": "resnet8"},
            "method": {"name": "standard"},
            "attack": {"eps": 0.2, "step_size": 0.1, "steps": 1},
            "optimizer": {"epochs": 2, "lr": 0.1},
            "regularization": {"kernel": "l1", "factor": 1e-5},
        }
    )


def test_retraining_resumes_to_the_same_bits_and_notices_another_file(digits_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    shutil.copy(digits_file, file)
    of = retraining(file)
    train(of, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("deploytool.training.loop.log_scalars", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        train(of, tmp_path / "stopped")

    image, label = load_dataset(DataSection(name="digits")).train.batch(slice(0, 200))
    save(file, image, label, image)
    with pytest.raises(RunError, match=r"a\.npz is no longer the file that .*stopped was started with"):
        train(of, tmp_path / "stopped", resume=True)
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        train(of, tmp_path / "stopped", resume=True)

    shutil.copy(digits_file, file)
    train(of, tmp_path / "stopped", resume=True)
    a, b = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "stopped")
    assert a.history == b.history and a.files == b.files and list(a.files) == [str(file)]
    assert all(torch.equal(a.model[name], b.model[name]) for name in a.model)
    plain = tmp_path / "plain"
    train(make_recipe(of.model_dump(mode="json", by_alias=True), ["data.adversarial=[]"]), plain)
    assert any(not torch.equal(a.model[name], tensor) for name, tensor in load_checkpoint(plain).model.items())
