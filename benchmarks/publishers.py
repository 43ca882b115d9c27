"""Sixteen processes publish partitions of a dataset at once: is one of them in force, and is any half or lost?

    python benchmarks/publishers.py [--rounds 1000] [--lake URI]

Without `--lake` in a folder. Each process has a cache of its own, as on so many machines. In a round, which begins for
all at the same moment, eight publish the same partition with the same fingerprint, four the same partition with
fingerprints of their own, and four partitions of their own. All look before they race, as every step does. After
each round is checked, as another machine would see it:

    in force         of the two partitions that several publish, one manifest each, which one of them has published
    own              the partitions that only one publishes: each as it was published
    half             partitions in force with a file that is missing, or has other bytes
    unreadable       manifests that a publisher was given and whose files cannot be read
    leftovers        objects that no manifest of the round names: losers remove theirs
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PUBLISHERS = 16
_TABLE = "takings"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=1000)
    arguments.add_argument("--lake", help="an empty folder of an object store; default: a folder")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, seconds = race(asked.lake or f"{folder}/lake", Path(folder), asked.rounds)
    print("rounds", "in force", "own", "half", "unreadable", "leftovers", "s/round", sep="  ")
    names = ("in force", "own", "half", "unreadable", "leftovers")
    print(asked.rounds, *(counts[name] for name in names), f"{seconds / asked.rounds:.3f}", sep="  ")
    if counts != Counter({"in force": 2 * asked.rounds, "own": 4 * asked.rounds, "leftovers": counts["leftovers"]}):
        sys.exit("a promise is broken")


def race(lake: str, folder: Path, rounds: int) -> tuple[Counter[str], float]:
    """Return what was counted, and how long the races took."""
    counts: Counter[str] = Counter()
    seconds = 0.0
    _check(lake, folder / "judge", "features/none", [])  # a lake is looked at before its first use
    with _publishers(lake, folder) as publishers:
        for number in range(rounds):
            dataset = f"features/round{number}"
            for publisher in publishers:
                publisher.send(dataset)
            for publisher in publishers:
                assert publisher.recv() == "staged"
            begin = time.perf_counter()
            for publisher in publishers:
                publisher.send("go")
            manifests = [publisher.recv() for publisher in publishers]
            seconds += time.perf_counter() - begin
            counts += _check(lake, folder / "judge", dataset, manifests)
    return counts, seconds


def _plan(number: int) -> tuple[str, str]:
    """Return partition and fingerprint of a publisher."""
    if number < 8:
        return "day=2013-01-01", "a" * 64
    if number < 12:
        return "day=2013-01-02", f"{number:02x}" * 32
    return f"day=2013-01-{number}", f"{number:02x}" * 32


@contextmanager
def _publishers(lake: str, folder: Path) -> Iterator[list[Connection]]:
    context = get_context("spawn")
    pipes = [context.Pipe() for _ in range(PUBLISHERS)]
    processes = [
        context.Process(target=_publish, args=(number, lake, folder / str(number), pipe[1]), daemon=True)
        for number, pipe in enumerate(pipes)
    ]
    for process, pipe in zip(processes, pipes, strict=True):
        process.start()
        pipe[1].close()  # so that its end is noticed
    try:
        yield [pipe[0] for pipe in pipes]
    finally:
        for process in processes:
            process.kill()


def _publish(number: int, lake: str, home: Path, pipe: Connection) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _enter(lake, home)
    from evergreen.lake.datasets import open_dataset

    partition, fingerprint = _plan(number)
    while True:
        dataset = open_dataset(pipe.recv())
        staged = dataset.stage(partition, fingerprint)
        # Out of the way of a winner on the same machine, which removes what was staged for its fingerprint.
        own = shutil.move(staged, staged.parents[1] / f"own-{number}")
        file = Path(own) / f"{_TABLE}.parquet"
        value = 0 if number < 8 else number
        pq.write_table(pa.table({"n": [value] * 3}), file)
        dataset.manifest(partition)
        pipe.send("staged")
        pipe.recv()
        pipe.send(dataset.publish(partition, fingerprint, {_TABLE: file}, {"value": value}))
        shutil.rmtree(own)


def _enter(lake: str, home: Path) -> None:
    os.environ |= {"EVERGREEN_HOME": str(home), "EVERGREEN_LAKE": lake}
    home.mkdir(parents=True, exist_ok=True)


def _check(lake: str, home: Path, name: str, manifests: Sequence[Any]) -> Counter[str]:
    import pyarrow.parquet as pq

    _enter(lake, home)
    from evergreen import object_store
    from evergreen.lake.datasets import open_dataset

    dataset, counts = open_dataset(name), Counter[str]()

    def is_whole(manifest: Any) -> bool:
        try:
            rows = pq.read_table(dataset.file_path(manifest, _TABLE))["n"].to_pylist()
        except Exception:
            return False
        return bool(rows == [manifest.inputs["value"]] * 3)

    in_force = {partition: dataset.manifest(partition) for partition in dataset.partitions()}
    for partition, manifest in in_force.items():
        is_shared = partition in ("day=2013-01-01", "day=2013-01-02")
        if manifest in [given for given in manifests if given.partition == partition]:
            counts["in force" if is_shared else "own"] += 1
        counts["half"] += not is_whole(manifest)
    counts["unreadable"] += sum(not is_whole(manifest) for manifest in manifests)
    if "://" in lake:
        named = {file.path for manifest in manifests for file in manifest.files.values()}
        stored = {item.path for item in object_store.list_objects(dataset.root)}  # type: ignore[arg-type]
        counts["leftovers"] += len({path for path in stored if path.endswith(".parquet")} - named)
    return +counts


if __name__ == "__main__":
    main()
