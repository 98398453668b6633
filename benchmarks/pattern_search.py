"""The nearest stored patterns: faiss against torch, and what `most_active` takes.

    OMP_NUM_THREADS=1 python benchmarks/pattern_search.py [--k 3] [--rounds 10] [--patterns 1,2,64,256,5000]

Random patterns of F features, N of them against M stored ones, in one process and in turns. A ratio is the median over
rounds of a way's time / torch's in the same round: below 1 it is faster than torch. Both are checked to find the same
first. Both have OMP_NUM_THREADS threads; with more than one, run nothing else on the machine. Combinations of more than
`--most` 10^9 operations, or a gigabyte of patterns, are left out.

`faiss` is its exhaustive search of the tensors as they are, `index` that of an IndexFlatIP, which holds a copy of the
stored patterns and was filled before.
"""

import argparse

import faiss
import numpy as np
import torch
from tabulate import tabulate

from deploytool.library.search import by_faiss, by_torch, most_active
from deploytool.timing import interleaved, processor

LARGEST = 1 << 30  # bytes of patterns


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=numbers, default=[64, 512, 1024, 16384])
    parser.add_argument("--stored", type=numbers, default=[100, 1000, 4000, 20000])
    parser.add_argument("--patterns", type=numbers, default=[1, 64, 256, 5000])
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--most", type=float, default=50.0)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    threads, k, rows = torch.get_num_threads(), arguments.k, []
    for features in arguments.features:
        for stored in arguments.stored:
            if stored * features * 4 > LARGEST:
                continue
            library = torch.randn(stored, features) / features**0.5
            index = faiss.IndexFlatIP(features)
            index.add(library.numpy())
            for count in arguments.patterns:
                work = 2 * count * stored * features / 1e9
                if work > arguments.most or count * features * 4 > LARGEST:
                    continue
                patterns = torch.randn(count, features) / features**0.5
                torch.testing.assert_close(
                    by_faiss(patterns, library, k)[0], by_torch(patterns, library, k)[0], rtol=1e-4, atol=1e-5
                )
                times = interleaved(
                    [
                        lambda patterns=patterns, library=library: by_torch(patterns, library, k),
                        lambda patterns=patterns, library=library: by_faiss(patterns, library, k),
                        lambda patterns=patterns, index=index: index.search(patterns.numpy(), k),
                        lambda patterns=patterns, library=library: most_active(patterns, library, k),
                    ],
                    rounds=arguments.rounds,
                    warm_up=2,
                )
                ratios = np.median(times / times[:, :1], axis=0)[1:]
                rows.append(
                    [features, stored, count, f"{np.median(times[:, 0]) * 1e3:.3f}", *(f"{r:.2f}" for r in ratios)]
                )
    titles = ["F", "M", "N", "torch, ms", "faiss / torch", "index / torch", "most_active / torch"]
    print(tabulate(rows, titles, "github", disable_numparse=True))
    print(f"k = {k}, {threads} threads of {processor()}; torch {torch.__version__}, faiss {faiss.__version__}")


if __name__ == "__main__":
    main()
