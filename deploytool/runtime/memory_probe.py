"""A process of its own that loads a model, runs it a few times and prints its peak memory.

python -m deploytool.runtime.memory_probe \
    '{"file": "model.onnx", "threads": 1, "batch": 1, "generic": false, "lambda": 0, "width": 1,
      "precision": "float32"}'
"""

import json
import resource
import sys
from pathlib import Path

from deploytool.runtime.bench import prepare

RUNS = 5


def main() -> None:
    """Read the request from the first argument, print `{"peak_rss_mb": ...}` (10^6 bytes)."""
    request = json.loads(sys.argv[1])
    place = Path(request["file"]), request["threads"], request["batch"]
    run, _ = prepare(*place, request["lambda"], request["generic"], request["width"], request["precision"])
    for _ in range(RUNS):
        run()
    sys.stdout.write(json.dumps({"peak_rss_mb": round(peak_rss_bytes() / 1e6, 3)}) + "\n")


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, in bytes.

    On Linux from /proc: `getrusage` there also counts what the parent held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        high_water = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(high_water.split()[1]) * 1024
    bytes_each = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_each


if __name__ == "__main__":
    main()
