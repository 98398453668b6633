"""Insertion and deletion, batched, against one image and one step at a time.

    OMP_NUM_THREADS=1 python benchmarks/faithfulness.py [--arch resnet20] [--data cifar10] [--images 8] [--rounds 15]

Three ways to the same curves, checked to be the same first: one image and one step at a time through the torch module,
as algorithms A1 and A2 are printed; this repository's functions on that module; and on the session that `fast_network`
makes of it. A ratio is the median over rounds, in which all take turns, of the first way's time / the way's own. All
use OMP_NUM_THREADS threads, in torch or in the session: torch has one beside a session, so that the two do
not compete. With more than one, run nothing else on the machine: whoever waits for
a thread that is not running waits for milliseconds at each layer, above all the first way.

The last column is arithmetic, two operations for each multiplication, of the passes that the way makes; beside it, to
be read against what one large product of matrices reaches in onnxruntime here.
"""

import argparse
import time

import numpy as np
import torch
from onnx import TensorProto, helper
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import gaussian_blur

from deploytool.data.catalogue import CATALOGUE
from deploytool.explain.faithfulness import KERNEL, SIGMA, deletion, insertion
from deploytool.explain.fast import fast_network
from deploytool.models.registry import build_backbone
from deploytool.runtime.network import open_session
from deploytool.timing import interleaved, processor


@torch.no_grad()
def one_at_a_time(network: nn.Module, image: Tensor, maps: Tensor, inserted: bool, kernel: int) -> Tensor:
    """Algorithms A1 and A2 as printed, steps of a row's pixels: curves (N, S + 1)."""
    curves = []
    for picture, heat in zip(image, maps, strict=True):
        target = int(network(picture[None]).argmax())
        goal = picture if inserted else torch.zeros_like(picture)
        current = gaussian_blur(picture, [kernel, kernel], [SIGMA, SIGMA]) if inserted else picture.clone()
        order = heat.flatten().argsort(stable=True, descending=True)
        curve = [network(current[None]).softmax(1)[0, target]]
        for rows in order.split(heat.shape[1]):
            current.view(len(picture), -1)[:, rows] = goal.reshape(len(picture), -1)[:, rows]
            curve.append(network(current[None]).softmax(1)[0, target])
        curves.append(torch.stack(curve))
    return torch.stack(curves)


def gflop(network: nn.Module, image: Tensor) -> float:
    """10^9 operations of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image[:1])
    return counter.get_total_flops() / 1e9


def fastest_product(threads: int, side: int = 1024) -> float:
    """10^9 operations a second of a product of matrices in onnxruntime, the best of many."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = open_session(model.SerializeToString(), threads, "product")
    feed = {name: np.ones((side, side), np.float32) for name in "ab"}
    return 2 * side**3 / interleaved([lambda: session.run(None, feed)], rounds=40).min() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--data", default="cifar10", choices=sorted(CATALOGUE))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    info = CATALOGUE[arguments.data]
    network = build_backbone(arguments.arch, info).eval()
    image, maps = torch.rand(arguments.images, *info.shape), torch.rand(arguments.images, *info.shape[1:])
    began = time.perf_counter()
    fast = fast_network(network, info.shape, threads)
    made = time.perf_counter() - began
    kernel = min(KERNEL, info.shape[1] - 1 | 1)
    work, rows = gflop(network, image), []
    for name in ("insertion", "deletion"):
        inserted = name == "insertion"

        def curves(answering, inserted=inserted):  # type: ignore[no-untyped-def]
            torch.set_num_threads(threads if answering is network else 1)
            found = insertion(answering, image, maps, kernel=kernel) if inserted else deletion(answering, image, maps)
            torch.set_num_threads(threads)
            return found

        slow = one_at_a_time(network, image, maps, inserted, kernel)
        for answering in (network, fast):
            torch.testing.assert_close(curves(answering).probability, slow, rtol=1e-3, atol=1e-4)
        times = interleaved(
            [
                lambda inserted=inserted: one_at_a_time(network, image, maps, inserted, kernel),
                lambda curves=curves: curves(network),
                lambda curves=curves: curves(fast),
            ],
            rounds=arguments.rounds,
            warm_up=2,
        )
        steps = slow.shape[1]
        batched = arguments.images * steps if inserted else arguments.images * (steps - 1) + 1
        passes = [arguments.images * (steps + 1), batched, batched]
        for way, seconds, count in zip(("one at a time", "batched", "batched, session"), times.T, passes, strict=True):
            rows.append(
                [
                    f"{name}, {way}",
                    f"{np.median(seconds) * 1e3 / arguments.images:.2f} ms/image",
                    f"{np.median(times[:, 0] / seconds):.1f}",
                    f"{count * work / np.median(seconds):.0f} GFLOP/s",
                ]
            )
    print(tabulate(rows, ["", "median time", "one at a time / this", "arithmetic"], "github", disable_numparse=True))
    print(
        f"{arguments.arch} on {arguments.data}, {arguments.images} images, {threads} threads of {processor()}; "
        f"the session took {made:.1f} s to make; a product of matrices reaches {fastest_product(threads):.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main()
