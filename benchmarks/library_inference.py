"""What the verdict of libraries costs: logits and `cpl` beside logits alone, of one exported file.

    python benchmarks/library_inference.py runs/digits-float/model.onnx --lambda 0.3

Sessions are specialised and run interleaved, one image at a time; times are medians.
"""

import argparse
import time

import numpy as np
import onnxruntime

from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.session import Session
from deploytool.timing import processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--lambda", dest="lam", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    artefact = read_artefact(arguments.file)
    sessions = {
        outputs: Session(artefact, threads=arguments.threads, outputs=outputs, background=False)
        for outputs in (("logits",), ("logits", "cpl"))
    }
    image = np.random.default_rng(0).random((1, *artefact.metadata.shape), dtype=np.float32)
    times: dict[tuple[str, ...], list[float]] = {outputs: [] for outputs in sessions}
    for number in range(arguments.rounds + 10):
        for outputs, session in sessions.items():
            began = time.perf_counter()
            session.run(image, arguments.lam)
            if number >= 10:  # the first ones warm caches
                times[outputs].append(time.perf_counter() - began)
    plain, judged = (float(np.median(each)) * 1e3 for each in times.values())
    print(f"{processor()}, {arguments.threads} threads, onnxruntime {onnxruntime.__version__}")
    print(f"logits {plain:.3f} ms, logits and cpl {judged:.3f} ms: {judged / plain:.2f} times")


if __name__ == "__main__":
    main()
