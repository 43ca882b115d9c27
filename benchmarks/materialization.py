"""How fast materialization is next to raw writes of the same bytes, and how much memory and storage it takes.

    python benchmarks/materialization.py [--keys 200000] [--features 12] [--stores sqlite,redis] [--runs 3]
        [--without-feast]

A view of one key and 12 features (integers, floats, texts), published as one day; fewer features let more keys fit on
a disk: SQLite takes 2.6 kB a key with 12 of them. Each measurement is a process of its
own. In turns: Evergreen's materialization, from the published file to the store; Feast's `materialize`, from the same
file; and by hand, which writes what is in the store then once more, to an empty one: the same bytes, as ready made
commands of 10,000 rows (Redis' pipeline without transactions, SQLite's `executemany`). By hand is charged for the
writes only. It writes all keys to SQLite, where a write takes longer the more there is, and 1 million at most to Redis,
where it does not. Peak memory is that over what the process had before; Evergreen's is measured at a tenth of the keys,
too. Ratios are medians of those of each turn.

Goals: rows/s ÷ by hand at least 0.5, and memory that does not grow with the keys.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from measuring.projects import write_project

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support import servers

DAY = "2014-01-01"
TYPES = {"count": pa.int64(), "mean": pa.float64(), "text": pa.string()}
BATCH_ROWS = 10_000
REDIS_KEYS_BY_HAND = 1_000_000  # twice 10 million keys would be 7 GB
SPEC = """
from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="shoppers", owner="bench", feature_service="shoppers", label="buys", schedule="0 0 * * 1",
    features=dict(timezone="UTC", first_day="2014-01-01", spine="examples", views=["recent"],
                  sources=[dict(name="visits", columns=dict(shopper="string"))]),
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64, Int64, String
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

PER_KIND = %(per_kind)d
TYPES = {"count": Int64, "mean": Float64, "text": String}
shopper = Entity(name="shopper", join_keys=["shopper"], value_type=ValueType.STRING)
recent = FeatureView(
    name="recent", entities=[shopper], ttl=timedelta(days=9), source=feature_source("shoppers", "recent"),
    schema=[Field(name=f"{kind}_{number}", dtype=dtype) for kind, dtype in TYPES.items() for number in range(PER_KIND)])
shoppers = FeatureService(name="shoppers", features=[recent])
"""


def feature_names(count: int) -> list[str]:
    """Return as many names of each kind."""
    return [f"{kind}_{number}" for kind in TYPES for number in range(count // len(TYPES))]


def publish(keys: int, features: int) -> None:
    """Publish a day with a row for each key."""
    from evergreen.features import inputs
    from evergreen.lake import datasets
    from evergreen.spec import loader

    rng = np.random.default_rng(2014)
    make: dict[str, Callable[[int], Any]] = {
        "count": lambda rows: rng.integers(0, 10_000, rows),
        "mean": lambda rows: rng.normal(size=rows),
        "text": lambda rows: np.char.add("segment ", rng.integers(0, 100, rows).astype(str)),
    }
    dataset = inputs.features_dataset(loader.load_spec("shoppers"))
    partition = datasets.period_partition(DAY)
    file = dataset.stage(partition, "generated") / "recent.parquet"
    instant = datetime.fromisoformat(f"{DAY}T06:00").replace(tzinfo=UTC)
    names = feature_names(features)
    fields: list[tuple[str, Any]] = [("shopper", pa.string()), ("event_timestamp", pa.timestamp("us", "UTC"))]
    schema = pa.schema(fields + [(name, TYPES[name.partition("_")[0]]) for name in names])
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, keys, 100_000):
            numbers = range(start, min(start + 100_000, keys))
            columns: list[Any] = [[f"shopper-{number:09}" for number in numbers], [instant] * len(numbers)]
            columns += [make[name.partition("_")[0]](len(numbers)) for name in names]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema))
    dataset.publish(partition, "generated", {"recent": file}, {"made": "by a benchmark"})


def materialize() -> None:
    from evergreen.feature_store import online_store
    from evergreen.periods import Calendar
    from evergreen.spec import loader
    from evergreen.window import RunReason, Window

    calendar = Calendar("1d", "UTC")
    window = Window.from_range(DAY, calendar.shift(DAY, 1), RunReason.MANUAL, calendar)
    assert online_store.materialize_features(loader.load_spec("shoppers"), window)


def materialize_by_feast() -> None:
    from evergreen.feature_store.repository import feast_lock, open_feature_store

    start = datetime.fromisoformat(DAY).replace(tzinfo=UTC)
    with feast_lock("shoppers"):
        open_feature_store("shoppers").materialize(start, start + timedelta(days=1))


def write_by_hand(features: int) -> tuple[float, float]:
    """Write what is in the store, or a part, to an empty one; return the seconds, and CPU seconds, of the writes."""
    from evergreen.settings import settings

    url = str(settings().online_store)
    seconds = cpu = 0.0
    for write in copy_redis(url) if url.startswith("redis") else copy_sqlite(Path(url), features):
        began, cpu_began = time.perf_counter(), time.process_time()
        write()
        seconds += time.perf_counter() - began
        cpu += time.process_time() - cpu_began
    return seconds, cpu


def copy_redis(url: str) -> Iterator[Callable[[], object]]:
    """Yield the writes of each batch."""
    source, target = redis.Redis.from_url(url), redis.Redis.from_url(f"{url.rstrip('/')}/1")
    target.flushdb()
    keys = list(islice((key for key in source.scan_iter(count=BATCH_ROWS) if b"shopper-" in key), REDIS_KEYS_BY_HAND))
    for start in range(0, len(keys), BATCH_ROWS):
        reads = source.pipeline(transaction=False)
        for key in keys[start : start + BATCH_ROWS]:
            reads.hgetall(key)
        rows = list(zip(keys[start : start + BATCH_ROWS], reads.execute(), strict=True))

        def write(rows: list[tuple[bytes, dict[Any, Any]]] = rows) -> None:
            pipeline = target.pipeline(transaction=False)
            for key, values in rows:
                pipeline.hset(key, mapping=values)
            pipeline.execute()

        yield write
    target.flushdb()


def copy_sqlite(folder: Path, features: int) -> Iterator[Callable[[], object]]:
    """Yield the writes of each batch."""
    [file] = folder.glob("*.db")
    copy = file.with_suffix(".copy")
    source, target = sqlite3.connect(file), sqlite3.connect(copy)
    [(name,)] = source.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%recent'")
    for (statement,) in source.execute("SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL", [name]):
        target.execute(statement)
    cursor = source.execute(f'SELECT * FROM "{name}" ORDER BY rowid')
    insert = f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(cursor.description))})'
    while rows := cursor.fetchmany(BATCH_ROWS * features):

        def write(rows: list[Any] = rows) -> None:
            with target:
                target.executemany(insert, rows)

        yield write
    target.close()
    copy.unlink()


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak of this process' memory over what it was at the beginning, in MB."""
    process, is_over = psutil.Process(), threading.Event()
    first = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: (peak - first) >> 20
    finally:
        is_over.set()
        thread.join()


def work(how: str, keys: int, features: int) -> None:
    """Do one thing, and print its figures as JSON."""
    if how == "publish":
        publish(keys, features)
        return
    if how == "by hand":
        seconds, cpu = write_by_hand(features)
        print(json.dumps({"seconds": seconds, "cpu": cpu, "mb": 0}))
        return
    from evergreen.feature_store.repository import open_feature_store

    open_feature_store("shoppers")  # what is imported and registered is not measured
    with peak_memory() as peak:
        began, cpu_began = time.perf_counter(), time.process_time()
        (materialize if how == "evergreen" else materialize_by_feast)()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    print(json.dumps({"seconds": seconds, "cpu": cpu, "mb": peak()}))


def measure(how: str, keys: int, features: int, variables: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", how, "--keys", str(keys), "--features", str(features)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]) if how != "publish" else {}  # type: ignore[no-any-return]


def empty(url: str, home: Path) -> None:
    """Remove the values, and the record of them."""
    shutil.rmtree(home / "lake/online", ignore_errors=True)
    if url.startswith("redis"):
        redis.Redis.from_url(url).flushall()
    else:
        shutil.rmtree(url, ignore_errors=True)


def stored_bytes(url: str) -> int:
    if url.startswith("redis"):
        return int(redis.Redis.from_url(url).info("memory")["used_memory"])
    return sum(file.stat().st_size for file in Path(url).glob("*.db"))


def compare(
    store: str, url: str, ways: Sequence[str], options: argparse.Namespace, scratch: Path, project: dict[str, str]
) -> None:
    """Print the figures of a store."""
    keys, features = options.keys, options.features
    home, small_home, small = scratch / store, scratch / f"{store}-small", keys // 10
    variables = project | {"EVERGREEN_HOME": str(home), "EVERGREEN_ONLINE_STORE": url}
    small_variables = variables | {"EVERGREEN_HOME": str(small_home)}
    measure("publish", keys, features, variables)
    measure("publish", small, features, small_variables)
    empty(url, small_home)
    few = measure("evergreen", small, features, small_variables)
    figures: dict[str, list[dict[str, float]]] = {"by hand": [], **{way: [] for way in ways}}
    sizes = {}
    for _ in range(options.runs):
        for way in ways:  # the last one's values are those that are written by hand
            empty(url, home)
            before = stored_bytes(url)
            figures[way].append(measure(way, keys, features, variables))
            sizes[way] = (stored_bytes(url) - before) / keys / features
        figures["by hand"].append(measure("by hand", keys, features, variables))
    rows = {"by hand": min(keys, REDIS_KEYS_BY_HAND) if store == "redis" else keys}
    for way, results in figures.items():
        seconds, cpu, mb = (median(run[key] for run in results) for key in ("seconds", "cpu", "mb"))
        per_second, per_cpu_second = (
            median(
                rows.get(way, keys) / run[key] * hand[key] / rows["by hand"]
                for run, hand in zip(results, figures["by hand"], strict=True)
            )
            for key in ("seconds", "cpu")
        )
        size = f"{sizes[way]:>7.1f} B a value{mb:>8,.0f} MB" if way in sizes else ""
        flat = f", {few['mb']:.0f} MB of {small:,} keys" if way == "evergreen" else ""
        print(
            f"{store:<8}{way:<10}{keys:>12,} keys{seconds:>9.2f} s{cpu:>9.2f} CPU s"
            f"{rows.get(way, keys) / seconds:>10,.0f} rows/s"
            f"{per_second:>7.2f} × rows/s{per_cpu_second:>7.2f} × rows/CPU s{size}{flat}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=12, help="a multiple of 3")
    parser.add_argument("--stores", default="sqlite,redis")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--without-feast", action="store_true", help="10,000 bytes of memory a key")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.keys, arguments.features)
        return
    if arguments.features < len(TYPES) or arguments.features % len(TYPES):
        parser.error(f"--features: a multiple of {len(TYPES)}")
    scratch = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    definitions = DEFINITIONS.replace("%(per_kind)d", str(arguments.features // len(TYPES)))
    project = write_project(scratch / "project", "shoppers", {"model": SPEC}, definitions)
    ways = ["evergreen"] if arguments.without_feast else ["feast", "evergreen"]
    for store in arguments.stores.split(","):
        if store == "redis":
            with servers.redis(scratch / "redis-server", "") as url:
                compare(store, url, ways, arguments, scratch, project)
        else:
            compare(store, str(scratch / "online"), ways, arguments, scratch, project)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
