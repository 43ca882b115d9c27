"""Publishing is atomic and repeatable, whichever process is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import storage
from evergreen.errors import InputsChangedError
from evergreen.lake import datasets, fingerprints
from evergreen.lake.datasets import Dataset

pytestmark = pytest.mark.unit


def stage(dataset: Dataset, fingerprint: str, value: int, partition: str = "day=2013-01-01") -> dict[str, Path]:
    folder = dataset.stage(partition, fingerprint)
    files = {}
    for name in ("carriers", "origins"):
        files[name] = folder / f"{name}.parquet"
        pq.write_table(pa.table({"n": [value] * 3}), files[name])
    return files


def publish(dataset: Dataset, fingerprint: str, value: int) -> datasets.Manifest:
    return dataset.publish("day=2013-01-01", fingerprint, stage(dataset, fingerprint, value), {"value": value})


def values(dataset: Dataset) -> list[int]:
    """Return what a reader sees: the value in each file of the partition."""
    manifest = dataset.manifest("day=2013-01-01")
    if manifest is None:
        return []
    for file in manifest.files.values():
        assert storage.file_sha256(dataset.root / file.path) == file.sha256
    return [pq.read_table(dataset.file_path(manifest, name))["n"][0].as_py() for name in manifest.files]


def test_manifest_has_rows_schema_hashes_and_inputs(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "features")
    manifest = publish(dataset, "a" * 64, 1)
    assert dataset.manifest("day=2013-01-01") == manifest
    file = manifest.files["carriers"]
    assert (file.rows, file.schema, manifest.inputs) == (3, {"n": "int64"}, {"value": 1})
    assert file.size == (dataset.root / file.path).stat().st_size
    assert not list((dataset.root / "_staging").iterdir())


def test_publish_again_needs_no_staged_files(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "features")
    first = publish(dataset, "a" * 64, 1)
    missing = {"carriers": tmp_path / "gone.parquet"}
    assert dataset.publish("day=2013-01-01", "a" * 64, missing, {}) == first


def test_the_first_publication_stays_where_asked(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "predictions")
    first = publish(dataset, "a" * 64, 1)
    staged = stage(dataset, "b" * 64, 2)
    again = dataset.publish("day=2013-01-01", "b" * 64, staged, {"value": 2}, keeps_published=True)
    assert again == first == dataset.manifest("day=2013-01-01")
    assert values(dataset) == [1, 1]


def test_publish_keeps_replaced_files_readable(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "features")
    old = publish(dataset, "a" * 64, 1)
    publish(dataset, "b" * 64, 2)
    assert values(dataset) == [2, 2]
    assert pq.read_table(dataset.file_path(old, "carriers"))["n"][0].as_py() == 1
    with pytest.raises(InputsChangedError, match="clear this run"):
        dataset.resolve(old.reference)


def test_published_files_excludes_staged_and_replaced(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "features")
    assert datasets.published_files(str(dataset.root / "carriers")) is None
    publish(dataset, "a" * 64, 1)
    publish(dataset, "b" * 64, 2)
    stage(dataset, "c" * 64, 3)
    (file,) = datasets.published_files(str(dataset.root / "carriers")) or []
    assert pq.read_table(file)["n"][0].as_py() == 2
    assert datasets.published_files(str(dataset.root / "unknown")) == {}


WRITER = """
import sys
sys.path[:0] = [{tests!r}, {include!r}]
from pathlib import Path
from unit.lake.test_datasets import publish
from evergreen.lake.datasets import Dataset
import pyarrow.parquet  # what publishing would import first
dataset = Dataset(Path({root!r}))
print("go", flush=True)
for n in range(int(sys.argv[1]), 100_000, 2):
    publish(dataset, f"{{n:064x}}", n)
"""


def test_publish_is_atomic_when_writers_are_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    dataset = Dataset(tmp_path / "features")
    code = WRITER.format(tests=str(root / "tests"), include=str(root / "include"), root=str(dataset.root))
    rng = random.Random(9)
    observed = set()
    for _ in range(4):
        writers = [subprocess.Popen([sys.executable, "-c", code, str(n)], stdout=subprocess.PIPE) for n in (0, 1)]
        for writer in writers:
            assert writer.stdout
            writer.stdout.readline()
        # Until some values were observed, however slow the machine is, and then to a random moment.
        count, deadline = len(observed), time.monotonic() + 30
        while len(observed) < count + 3 and time.monotonic() < deadline:
            observed.add(tuple(values(dataset)))
        end = time.monotonic() + rng.uniform(0.0, 0.3)
        while time.monotonic() < end:
            observed.add(tuple(values(dataset)))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
            assert writer.stdout
            writer.stdout.close()
        observed.add(tuple(values(dataset)))
    pairs = [pair for pair in observed if pair]
    assert len(pairs) > 5
    assert all(len(pair) == 2 and pair[0] == pair[1] for pair in pairs)


def test_compute_fingerprint_ignores_order_of_keys(tmp_path: Path) -> None:
    assert fingerprints.compute_fingerprint({"a": 1, "b": [1, 2]}) == fingerprints.compute_fingerprint(
        {"b": [1, 2], "a": 1}
    )
    assert fingerprints.compute_fingerprint({"a": 1}) != fingerprints.compute_fingerprint({"a": 2})


def test_code_of_hashes_modules_and_libraries() -> None:
    code = fingerprints.code_of(("evergreen.errors",), ("pydantic",))
    assert set(code) == {"evergreen.errors", "pydantic"}
    with pytest.raises(ModuleNotFoundError):
        fingerprints.code_of(("evergreen.nothing",), ())


def test_atomic_write_keeps_old_file_on_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def fail_half_way() -> None:
        with storage.atomic_write(file) as scratch:
            scratch.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "old"
