"""How fast the network trains on a GPU, how busy that is, and how much faster than this machine's CPUs it is.

    python benchmarks/gpu.py [--rows 4000000] [--epochs 3] [--batch-rows 16384]

Trains `flight_delay_net` as the process backend does, with the trainer's Python (`make trainer`, whose torch must
be the one with CUDA): first with one GPU, in mixed precision, then without, on a tenth of the rows. Rows a second
are those of the last line that training prints, reading Parquet and writing checkpoints included. How busy the GPU
is, is what the driver says, sampled each half second from the first step to the last.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from evergreen.training import Job
from evergreen.training.outcome import Outcome
from measuring.training import job_of, start, write_training_set

MODEL = "flight_delay_net"
QUERY = ["nvidia-smi", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Sample:
    """Of all GPUs that there are, the busiest."""

    utilisation: float  # percent
    memory: float  # MiB


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rows", type=int, default=4_000_000)
    arguments.add_argument("--epochs", type=int, default=3)
    arguments.add_argument("--batch-rows", type=int, default=16_384)
    asked = arguments.parse_args()
    if shutil.which("nvidia-smi") is None:
        sys.exit("no GPU here: nvidia-smi is not found, so nothing is measured")
    print(query("name,driver_version,memory.total"))
    with tempfile.TemporaryDirectory() as scratch:
        about = dict(epochs=asked.epochs, batch_rows=asked.batch_rows, checkpoint_seconds=30.0)
        data = write_training_set(Path(scratch, "train.parquet"), asked.rows)
        few = write_training_set(Path(scratch, "few.parquet"), asked.rows // 10)
        samples: list[Sample] = []
        gpu = train(job_of(MODEL, data, **about).model_copy(update={"gpu": 1}), Path(scratch, "gpu"), samples)
        cpu = train(job_of(MODEL, few, **about), Path(scratch, "cpu"), [])
    print(f"one GPU    {gpu:12,.0f} rows/s   {gpu / cpu:.1f} x this machine's CPUs ({cpu:,.0f} rows/s)")
    busy = [sample.utilisation for sample in samples]
    print(f"utilisation: mean {statistics.mean(busy):.0f} %, median {statistics.median(busy):.0f} %")
    print(f"memory: {max(sample.memory for sample in samples):,.0f} MiB at most")


def train(job: Job, folder: Path, samples: list[Sample]) -> float:
    """Rows a second, from the first step to the last."""
    speed = 0.0
    with start(job, folder) as training, sampling(samples):
        assert training.stdout
        for line in training.stdout:
            print(f"  {line}", end="", flush=True)
            if found := re.search(r"([\d,]+) rows/s", line):
                if not speed:
                    samples.clear()  # what came before was reading the data for its scales
                speed = float(found[1].replace(",", ""))
        code = training.wait()
    if Outcome.from_exit_code(code) is not Outcome.SUCCEEDED:
        sys.exit(f"training ended with exit code {code}")
    return speed


@contextmanager
def sampling(samples: list[Sample]) -> Iterator[None]:
    over = Event()

    def look() -> None:
        while not over.wait(0.5):
            seen = [tuple(map(float, line.split(","))) for line in query("utilization.gpu,memory.used").splitlines()]
            samples.append(Sample(*max(seen)))

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def query(fields: str) -> str:
    return subprocess.run([*QUERY, f"--query-gpu={fields}"], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
