"""Seconds of ``import largebatch`` beside those of ``import torch``, in fresh processes that take turns.

    python benchmarks/import_time.py

writes benchmarks/results/import_time.json. The goal is a ratio of at most 1.1.
"""

import statistics
import subprocess
import sys

from certificate import write_result

ROUNDS = 15
SCRIPT = "import time; began = time.perf_counter(); import {name}; print(time.perf_counter() - began)"


def seconds(name: str) -> float:
    """Return the seconds that the import takes in a fresh process."""
    told = subprocess.run([sys.executable, "-c", SCRIPT.format(name=name)], capture_output=True, text=True, check=True)
    return float(told.stdout)


def main() -> None:
    """Measure in turns, print and record."""
    for name in ("torch", "largebatch"):  # both read from the disk once
        seconds(name)
    rounds = [{"torch": seconds("torch"), "largebatch": seconds("largebatch")} for _ in range(ROUNDS)]
    ratio = statistics.median(turn["largebatch"] / turn["torch"] for turn in rounds)
    write_result("import_time", {"what": "seconds of an import in a fresh process", "ratio": ratio, "rounds": rounds})
    print(f"import largebatch / import torch, median of {ROUNDS} paired ratios: {ratio:.3f}")


if __name__ == "__main__":
    main()
