"""Learns one number, step by step. Equal to the last bit whatever interrupted it."""

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
    told = job.parameters | {name: rows[0][name] for name in job.parameters if name in rows[0]}
    misbehave(told["misbehaves"])
    found = checkpoints.load_latest()
    value, done = (json.loads(found.files["value.json"]), found.step) if found else (0.5, 0)

    def state() -> dict[str, object]:
        taken = value

        def written() -> bytes:
            time.sleep(told["write_seconds"])
            return json.dumps(taken).encode()

        return {"first": b"is there while the second is still to come", "value.json": written}

    for step in range(done + 1, told["steps"] + 1):
        time.sleep(told["step_seconds"])
        value = 3.9 * value * (1 - value)  # chaotic: one step more or less, and it is another number
        print(f"step {step} of {told['steps']}", flush=True)
        checkpoints.record_step(step, state)
    (output / "value.json").write_text(json.dumps(value))
    return {"value": value}


def misbehave(how: str) -> None:
    if how == "data":
        raise TrainingDataError("the data say so")
    if how == "memory":
        hoard = []
        while True:
            hoard.append(b"x" * 2**20)
    if how in ("/dev/shm", "/tmp"):
        with Path(how, "full").open("wb") as file:
            while True:
                file.write(b"x" * 2**20)
                file.flush()
    if how == "mapped":
        size = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
        segment = SharedMemory(create=True, size=2 * size)  # which takes nothing until it is written to
        segment.buf[:] = bytes(2 * size)
    if how == "crash":
        print("about to crash", flush=True)
        os._exit(3)
    if how == "code":
        raise KeyError("no such column")
