"""Learns one number, step by step. The result is the same to the last bit, whatever interrupts it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pyarrow.parquet as pq

from evergreen import storage
from evergreen.errors import TrainingDataError
from evergreen.training import Job
from evergreen.training.checkpoints import Checkpoints


def fit(job: Job, output: Path, checkpoints: Checkpoints) -> Mapping[str, float]:
    with storage.storage_path(job.training_data).open("rb") as file:
        rows = pq.ParquetFile(file).read_row_group(0).slice(0, 1).to_pylist()
    hold = Path(job.training_data.partition("/training_sets/")[0], "hold")  # of a test that has not seen enough yet
    behavior = job.parameters | {name: rows[0][name] for name in job.parameters if name in rows[0]}
    misbehave(behavior["misbehaves"])
    latest = checkpoints.load_latest()
    value, first_step = (json.loads(latest.files["value.json"]), latest.step) if latest else (0.5, 0)

    def state() -> dict[str, object]:
        step_value = value

        def serialize() -> bytes:
            time.sleep(behavior["write_seconds"])
            return json.dumps(step_value).encode()

        return {"first": b"written while the second is still being serialized", "value.json": serialize}

    for step in range(first_step + 1, behavior["steps"] + 1):
        time.sleep(behavior["step_seconds"])
        value = 3.9 * value * (1 - value)  # chaotic: one step more or less gives another number
        print(f"step {step} of {behavior['steps']}", flush=True)
        checkpoints.record_step(step, state)
        while step == behavior["steps"] - 1 and hold.exists():
            time.sleep(0.1)
            checkpoints.record_step(step, state)
    (output / "value.json").write_text(json.dumps(value))
    return {"value": value}


def misbehave(kind: str) -> None:
    if kind == "data":
        raise TrainingDataError("the data say so")
    if kind == "memory":
        hoard = []
        while True:
            hoard.append(b"x" * 2**20)
    if kind in ("/dev/shm", "/tmp"):
        with Path(kind, "full").open("wb") as file:
            while True:
                file.write(b"x" * 2**20)
                file.flush()
    if kind == "mapped":
        size = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
        segment = SharedMemory(create=True, size=2 * size)  # which takes nothing until it is written to
        segment.buf[:] = bytes(2 * size)
    if kind == "crash":
        print("about to crash", flush=True)
        os._exit(3)
    if kind == "code":
        raise KeyError("no such column")
