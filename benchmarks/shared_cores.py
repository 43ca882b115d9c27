"""Training while other processes want the same cores: how threads of OpenMP wait for one another.

    python benchmarks/shared_cores.py [--runs 3] [--busy 3]

Trees are fitted by two threads, in turns with the environment that Evergreen gives trainers and without it: alone, and
beside `--busy` processes that compute for ever. Medians; the models have the same bytes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping

from evergreen.training.attempt import THREAD_VARIABLES

FIT = """
import hashlib, time
import numpy as np, xgboost
random = np.random.default_rng(0)
inputs = random.normal(size=(45_000, 34)).astype("float32")
rows = xgboost.DMatrix(inputs, label=inputs[:, 0] + random.normal(size=len(inputs)) > 0)
wall, cpu = time.monotonic(), time.process_time()
model = xgboost.train({"objective": "binary:logistic", "max_depth": 6, "nthread": 2, "seed": 1}, rows, 200)
digest = hashlib.sha256(bytes(model.save_raw())).hexdigest()
print(time.monotonic() - wall, time.process_time() - cpu, digest)
"""


def fit(variables: Mapping[str, str]) -> tuple[float, float, str]:
    """Return seconds, CPU seconds and the hash of the model."""
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    command = [sys.executable, "-c", FIT]
    done = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=True)
    wall, cpu, digest = done.stdout.split()
    return float(wall), float(cpu), digest


def measure(runs: int) -> None:
    turns = [(fit({}), fit(THREAD_VARIABLES)) for _ in range(runs)]
    assert len({digest for turn in turns for *_, digest in turn}) == 1, "the models differ"
    without, own = zip(*turns, strict=True)
    for name, results in (("by default", without), ("Evergreen", own)):
        wall, cpu = (statistics.median(result[number] for result in results) for number in (0, 1))
        print(f"  {name:12} {wall:8.2f} s {cpu:8.2f} CPU s")
    ratios = [first[0] / second[0] for first, second in turns]
    print(f"  by default ÷ Evergreen: {statistics.median(ratios):.2f} by the clock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--busy", type=int, default=3, help="processes that compute beside the training")
    arguments = parser.parse_args()
    print("alone")
    measure(arguments.runs)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)]
    try:
        print(f"beside {arguments.busy} processes")
        measure(arguments.runs)
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
