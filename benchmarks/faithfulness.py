"""Insertion and deletion, batched, against one image and one step at a time, on a CIFAR ResNet-20.

    OMP_NUM_THREADS=1 python benchmarks/faithfulness.py

Both compute the same curves; the ratio is the median over interleaved rounds of one process.
"""

import argparse

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from deploytool.data.catalogue import CATALOGUE
from deploytool.explain.faithfulness import KERNEL, SIGMA, deletion, insertion
from deploytool.models.registry import build_backbone
from deploytool.timing import interleaved


@torch.no_grad()
def one_at_a_time(network: nn.Module, image: Tensor, maps: Tensor, inserted: bool) -> Tensor:
    """Algorithms A1 and A2 as printed, steps of a row's pixels: curves (N, S + 1)."""
    curves = []
    for picture, heat in zip(image, maps, strict=True):
        target = int(network(picture[None]).argmax())
        goal = picture if inserted else torch.zeros_like(picture)
        current = gaussian_blur(picture, [KERNEL, KERNEL], [SIGMA, SIGMA]) if inserted else picture.clone()
        order = heat.flatten().argsort(stable=True, descending=True)
        curve = [network(current[None]).softmax(1)[0, target]]
        for rows in order.split(heat.shape[1]):
            current.view(len(picture), -1)[:, rows] = goal.reshape(len(picture), -1)[:, rows]
            curve.append(network(current[None]).softmax(1)[0, target])
        curves.append(torch.stack(curve))
    return torch.stack(curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = build_backbone("resnet20", CATALOGUE["cifar10"]).eval()
    image, maps = torch.rand(arguments.images, 3, 32, 32), torch.rand(arguments.images, 32, 32)
    rows = []
    for name, batched in (("insertion", insertion), ("deletion", deletion)):
        slow, fast = one_at_a_time(network, image, maps, name == "insertion"), batched(network, image, maps).probability
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)
        times = interleaved(
            [
                lambda batched=batched: batched(network, image, maps),
                lambda name=name: one_at_a_time(network, image, maps, name == "insertion"),
            ],
            rounds=arguments.rounds,
            warm_up=1,
        )
        ratio = float(np.median(times[:, 1] / times[:, 0]))
        rows.append([name, f"{np.median(times[:, 0]) * 1e3 / arguments.images:.1f} ms/image", f"{ratio:.1f}"])
    print(tabulate(rows, ["", "batched", "one at a time / batched"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
