"""What checkpoints cost a trainer that is never interrupted.

    python benchmarks/checkpoints.py [--seconds 10] [--pairs 5] [--rows 200000]

Each trainer does the same job with a checkpoint every so many seconds, and without any, in turns; each time in a
process of its own, as the process backend starts it. Reported are medians, and the median over the pairs of with ÷
without: of the wall time of the process, and of its CPU seconds, those of the thread that writes among them.

The interval that ships is 60 s, which costs a sixth of this.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from evergreen import storage
from evergreen.training import Job
from evergreen.training.outcome import Outcome
from measuring.training import job_of, start, write_training_set

NEVER = 1e6
MODELS = {"flight_delay": {"rounds": 1000}, "flight_delay_net": {"epochs": 30}}


@dataclass(frozen=True)
class Trained:
    wall: float
    cpu: float
    checkpoints: int
    model: dict[str, str]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=10)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--rows", type=int, default=200_000)
    asked = arguments.parse_args()
    row("trainer", "s with", "s without", "written", "wall", "CPU")
    with tempfile.TemporaryDirectory() as scratch:
        data = write_training_set(Path(scratch, "train.parquet"), asked.rows)
        for name, parameters in MODELS.items():
            pairs = []
            for n in range(asked.pairs):
                # In turns, and the other way round each time: a machine that slows down favours none.
                order = [asked.seconds, NEVER] if n % 2 else [NEVER, asked.seconds]
                done = {
                    seconds: train(
                        job_of(name, data, checkpoint_seconds=seconds, **parameters),
                        Path(scratch, name, str(n)),
                    )
                    for seconds in order
                }
                pairs.append((done[asked.seconds], done[NEVER]))
            assert all(one.model == other.model for one, other in pairs), "checkpoints change the model"
            with_, without = zip(*pairs, strict=True)
            row(
                name,
                f"{statistics.median(t.wall for t in with_):.1f}",
                f"{statistics.median(t.wall for t in without):.1f}",
                f"{statistics.median(t.checkpoints for t in with_):.0f}",
                f"{statistics.median(a.wall / b.wall for a, b in pairs) - 1:+.1%}",
                f"{statistics.median(a.cpu / b.cpu for a, b in pairs) - 1:+.1%}",
            )


def train(job: Job, folder: Path) -> Trained:
    folder = folder / f"{job.checkpoint_seconds:g}"
    before, begun = os.times(), time.perf_counter()
    training = start(job, folder)
    printed, _ = training.communicate()
    wall, after = time.perf_counter() - begun, os.times()
    assert Outcome.from_exit_code(training.returncode) is Outcome.SUCCEEDED, printed
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    written = sum(line.startswith("checkpoint of step") for line in printed.splitlines())
    files = {file.name: storage.file_sha256(file) for file in folder.glob("output/*/*")}
    return Trained(wall, cpu, written, files)


def row(*cells: str) -> None:
    print(
        "".join(f"{cell:>{width}}" for cell, width in zip(cells, (18, 10, 11, 9, 9, 9), strict=True)),
        flush=True,
    )


if __name__ == "__main__":
    main()
