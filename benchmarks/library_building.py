"""How much faster libraries are built in blocks than one pattern at a time, on the same machine.

    python benchmarks/library_building.py                       50,000 patterns of 16,384 values
    python benchmarks/library_building.py --images 5000 --theta 0.7,0.8
    python benchmarks/library_building.py --run RUN --data npz:PATH --layer conv1 --theta 0.34

Patterns are made block by block, rectified, in clusters of very different popularity; or they are a run's activity.
The loop that is compared does what the paper says, without waste: one product of the matrix of stored patterns with one
pattern, for each image. It would take hours, so it is timed on one image of each block, against the very patterns that
are stored by then, interleaved with the blocks; both store the same patterns (tests/library/test_novelty.py).
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from deploytool.data.datasets import load_dataset
from deploytool.explain.target import open_target
from deploytool.library.novelty import Shelf
from deploytool.library.patterns import scale
from deploytool.library.streams import blocks
from deploytool.library.taps import watch
from deploytool.recipe import DataSection
from deploytool.runtime.threads import available_threads
from deploytool.timing import processor

BLOCK = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=16_384)
    parser.add_argument("--clusters", type=int, default=4000)
    parser.add_argument("--run", help="a run (or ONNX file) whose activity is stored, instead of patterns made up")
    parser.add_argument("--layer", default="logits")
    parser.add_argument("--data", default="digits", help="whose training images the run sees")
    parser.add_argument("--theta", default="0.8")
    parser.add_argument("--storage", default="float32", choices=["float32", "float16", "int8"])
    parser.add_argument("--threads", type=int, default=available_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}, {arguments.storage}")
    for theta in map(float, arguments.theta.split(",")):
        compare(arguments, theta)


def compare(arguments: argparse.Namespace, theta: float) -> None:
    shelf = None
    in_blocks = one_by_one = 0.0
    first = 0
    for pattern in activity(arguments) if arguments.run else made_up(arguments):
        if shelf is None:
            shelf = Shelf("made up", pattern.shape[1], [theta], arguments.storage)
        else:
            one_by_one += one_at_a_time(shelf, pattern[0]) * len(pattern)
        began = time.perf_counter()
        shelf.offer(pattern, first)
        in_blocks += time.perf_counter() - began
        first += len(pattern)
    assert shelf is not None
    print(
        f"theta {theta:g}: {first} patterns of {shelf.codes.shape[1]} values, {shelf.size} stored; "
        f"in blocks {in_blocks:.1f} s ({first / in_blocks:.0f} a second), "
        f"one at a time {one_by_one:.1f} s: {one_by_one / in_blocks:.1f} times"
    )


def made_up(arguments: argparse.Namespace) -> Iterator[Tensor]:
    centres = torch.randn(arguments.clusters, arguments.features, generator=torch.Generator().manual_seed(0))
    for first in range(0, arguments.images, BLOCK):
        yield patterns(centres, min(BLOCK, arguments.images - first), first)


def activity(arguments: argparse.Namespace) -> Iterator[Tensor]:
    """Of a layer, for at most so many training images."""
    train = load_dataset(DataSection(name=arguments.data)).train.head(arguments.images)
    watched = watch(open_target(arguments.run), [arguments.layer], train.batch(slice(0, 2))[0])
    for block in blocks(watched, train, BLOCK):
        yield block.activity[arguments.layer].flatten(1)


def patterns(centres: Tensor, count: int, seed: int) -> Tensor:
    """A block (count, F) of rectified patterns around centres, the first ones chosen most often."""
    generator = torch.Generator().manual_seed(seed + 1)
    chosen = (torch.rand(count, generator=generator) ** 3 * len(centres)).long()
    noise = torch.randn(count, centres.shape[1], generator=generator)
    return (centres[chosen] + 0.4 * noise).relu_()


def one_at_a_time(shelf: Shelf, pattern: Tensor, repeats: int = 3) -> float:
    """Seconds of comparing one pattern with all that are stored, as float32 of length 1; the best of some."""
    stored = shelf.codes
    stored = stored if stored.dtype == torch.float32 else stored.float()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        one = scale(pattern[None], "made up")
        novel = bool(((stored @ one.values[0]) * shelf.scales * one.inverse).max() < 0)
        times.append(time.perf_counter() - began)
        assert novel in (True, False)
    return min(times)


if __name__ == "__main__":
    main()
