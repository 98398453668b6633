"""Models trained once for the whole suite: a small ResNet on digits, a few seconds each."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from deploytool.explain.explainer import Explainer, load_explainer
from deploytool.explain.recipe import ExplainerRecipe
from deploytool.explain.target import open_target
from deploytool.export.artefact import export, export_untrained
from deploytool.library.folder import Library
from deploytool.recipe import Recipe, load_recipe
from deploytool.training.loop import train
from deploytool.training.run import Run, load_run
from deploytool.training.surrogate import train_explainer

hypothesis.settings.register_profile("any machine", deadline=None)  # a slow machine is no wrong answer
hypothesis.settings.load_profile("any machine")

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = ["model.arch=resnet8", "optimizer.epochs=2", "attack.steps=2"]


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Small networks gain little from more, and bits depend on the number; commands under test change it."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Numbers of threads measured here are not those of the person who runs the tests, nor for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def float_recipe() -> Recipe:
    return load_recipe(RECIPES / "digits-float.yaml", SMALL)


@pytest.fixture(scope="session")
def trained_run(float_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A FLOAT run, frozen noise, batch-norm statistics of both conditions trained apart."""
    torch.set_num_threads(1)  # session fixtures come before those of a test
    folder = tmp_path_factory.mktemp("float") / "run"
    train(float_recipe, folder)
    return load_run(folder)


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of standard training."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(load_recipe(RECIPES / "digits-standard.yaml", SMALL), folder)
    return load_run(folder)


@pytest.fixture(scope="session")
def reasoned_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of standard training with reasoning labels, consistency noted after each epoch."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reasoned") / "run"
    labels = f"reasoning.labels={RECIPES / 'labels' / 'digits.yaml'}"
    changes = ["reasoning.every=1", "optimizer.epochs=3", "evaluate.images=120", labels]
    train(load_recipe(RECIPES / "digits-reasoning.yaml", [*SMALL, *changes]), folder)
    return load_run(folder)


@pytest.fixture(scope="session")
def float_explainer(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    """A surrogate of the FLOAT run, with two sets of batch norms."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("explainer") / "float"
    phase = {"first": 2, "then": 0}
    document = {"name": "x", "student": {"arch": "resnet8"}, "explanation": {"l1": 0.01}}
    schedule = {"student": phase, "explanation": phase}
    train_explainer(open_target(trained_run.path), ExplainerRecipe.make(document | {"schedule": schedule}), folder)
    return load_explainer(folder)


@pytest.fixture(scope="session")
def float_library(trained_run: Run) -> Library:
    """Libraries of the FLOAT run, of 150 images, one for each boundary condition."""
    make = runpy.run_path(str(Path(__file__).parent / "export" / "made_libraries.py"))["library_of"]
    return make(trained_run)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def trained_file(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FLOAT run exported with the paper's conditioning, which has a lambda threshold."""
    return Path(export(trained_run, tmp_path_factory.mktemp("switch") / "model.onnx", conditioning="switch")["file"])


@pytest.fixture(scope="session")
def trained_interpolate_file(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FLOAT run exported with interpolation."""
    folder = tmp_path_factory.mktemp("interpolate")
    return Path(export(trained_run, folder / "model.onnx", conditioning="interpolate")["file"])


@pytest.fixture(scope="session")
def plain_file(plain_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of standard training, exported."""
    return Path(export(plain_run, tmp_path_factory.mktemp("plain-file") / "model.onnx")["file"])


@pytest.fixture(scope="session")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slimmable FLOAT network of two widths, freshly initialised."""
    file = tmp_path_factory.mktemp("wide") / "model.onnx"
    export_untrained(load_recipe(RECIPES / "digits-float.yaml", [*SMALL, "model.widths=[0.5, 1.0]"]), file)
    return file


@pytest.fixture(scope="session")
def resnet34_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR ResNet-34, FLOAT, freshly initialised."""
    file = tmp_path_factory.mktemp("resnet34") / "model.onnx"
    export_untrained(load_recipe(RECIPES / "cifar10-resnet34-float.yaml"), file)
    return file
