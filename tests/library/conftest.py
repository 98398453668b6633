"""Libraries built once for all tests of them: small ones, of 300 images."""

import pytest
import torch

from deploytool.explain.target import open_target
from deploytool.library.build import build_library
from deploytool.library.folder import Library, load_library
from deploytool.library.recipe import LibraryRecipe
from deploytool.training.run import Run

TINY = {
    "name": "tiny",
    "images": 300,
    "layers": [
        {"layer": "layer2", "theta": [0.7, 0.9]},
        {"layer": "layer3", "title": "last", "theta": [0.8, 0.9]},
        {"layer": "logits", "theta": [0.9, 0.97]},
    ],
    "sets": {"Set1": [0.9, 0.9, 0.97], "Set2": [0.7, 0.8, 0.9]},
    "active": 3,
}


@pytest.fixture(scope="session")
def plain_library(plain_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Libraries of three layers of the run of standard training, at two thresholds each, in two sets."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("libraries") / "plain"
    build_library(open_target(plain_run.path), LibraryRecipe.make(TINY), folder)
    return load_library(folder)
