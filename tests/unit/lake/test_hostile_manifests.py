"""Whoever writes a manifest into the lake cannot make a reader open a file outside of its partition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from evergreen import storage
from evergreen.errors import DatasetError
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset

pytestmark = pytest.mark.unit

PARTITION = "day=2013-01-01"
DIGEST = "0" * 64
names = st.one_of(
    st.sampled_from(["..", "../x", "/etc/passwd", "a/b", "a\0", "_manifests", "", "con.json", "a" * 129]),
    st.text(max_size=200),
    st.text("./\\a_\0\n", max_size=12),
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = Dataset(tmp_path / "lake" / "features")
    (dataset.root / "_manifests").mkdir(parents=True)
    return dataset


def write_manifest(dataset: Dataset, content: bytes) -> None:
    (dataset.root / "_manifests" / f"{PARTITION}.json").write_bytes(content)


def manifest_json(file: dict[str, Any] | None = None, name: str = "t", **changes: Any) -> bytes:
    entry = {"path": f"t/{PARTITION}/x.parquet", "sha256": DIGEST, "size": 1, **(file or {})}
    fields = {"partition": PARTITION, "fingerprint": "f" * 64, "inputs": {}, "files": {name: entry}}
    return json.dumps({**fields, **changes}).encode()


def test_an_honest_manifest_is_read(dataset: Dataset) -> None:
    write_manifest(dataset, manifest_json())
    manifest = dataset.manifest(PARTITION)
    assert manifest is not None
    assert dataset.file_path(manifest, "t") == dataset.root / "t" / PARTITION / "x.parquet"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (manifest_json({"path": "../../dags/x.py"}), "is no file name"),
        (manifest_json({"path": "/etc/passwd"}), "is no file name"),
        (manifest_json({"path": f"t/{PARTITION}/../x"}), "is no file name"),
        (manifest_json({"path": f"other/{PARTITION}/x"}), "the path of t is not below t/day=2013-01-01"),
        (manifest_json({"path": "t/day=2013-01-02/x"}), "the path of t is not below t/day=2013-01-01"),
        (manifest_json({"path": "x"}), "the path of t is not below"),
        (manifest_json(name="../t"), "is no file name"),
        (manifest_json({"sha256": "x"}), "should match pattern"),
        (manifest_json({"size": -1}), "greater than or equal to 0"),
        (manifest_json({"surprise": 1}), "Unexpected keyword"),
        (manifest_json(partition="day=2013-01-02", files={}), "it is that of day=2013-01-02"),
        (manifest_json(fingerprint="../x"), "is no file name"),
        (manifest_json(files={f"t{n}": {} for n in range(10_001)}), "."),
        (b"[" * 100_000, "."),
        (b"{", "Invalid JSON"),
        (b"", "Invalid JSON"),
    ],
)
def test_hostile_manifest_is_refused_by_name(dataset: Dataset, content: bytes, problem: str) -> None:
    write_manifest(dataset, content)
    with pytest.raises(DatasetError, match=rf"{PARTITION}.json is no manifest: .*{problem}"):
        dataset.manifest(PARTITION)
    with pytest.raises(DatasetError):
        dataset.manifests()
    with pytest.raises(DatasetError):
        dataset.publish(PARTITION, "e" * 64, {}, {})


def test_large_manifest_is_not_parsed(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MAX_MANIFEST_BYTES", 200)
    write_manifest(dataset, manifest_json(inputs={"x": "y" * 200}))
    with pytest.raises(DatasetError, match="it has more than 200 bytes"):
        dataset.manifest(PARTITION)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names, path=names)
def test_no_manifest_names_a_file_elsewhere(dataset: Dataset, name: str, path: str) -> None:
    write_manifest(dataset, manifest_json({"path": f"{name}/{PARTITION}/{path}"}, name=name))
    try:
        manifest = dataset.manifest(PARTITION)
    except DatasetError:
        return
    assert manifest is not None
    file = dataset.file_path(manifest, name)
    assert file.resolve().parent == (dataset.root / name / PARTITION).resolve()
    assert file.resolve().is_relative_to(dataset.root.resolve())


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_no_content_does_more_than_be_refused(dataset: Dataset, content: bytes) -> None:
    write_manifest(dataset, content)
    with pytest.raises(DatasetError):
        dataset.manifest(PARTITION)


@given(partition=names, fingerprint=names)
def test_no_partition_is_a_path(partition: str, fingerprint: str) -> None:
    root = Path("/nowhere/at/all")
    for path in (
        lambda: Dataset(root).manifest_path(partition),
        lambda: Dataset(root)._staging_folder(partition, fingerprint),
    ):
        try:
            assert path().parent.parent == root
            assert ".." not in path().parts
        except DatasetError:
            pass


@pytest.mark.parametrize("name", ["../x", "_manifests", "a/b", ".hidden"])
def test_a_file_is_not_published_under_a_path(dataset: Dataset, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(DatasetError, match="is no file name"):
        dataset.publish(PARTITION, "f" * 64, {name: tmp_path / "file"}, {})
    assert dataset.partitions() == []


@given(path=st.one_of(names, st.lists(names, max_size=4).map("/".join)))
def test_a_relative_path_stays_in_its_folder(path: str) -> None:
    try:
        checked = storage.check_relative_path(path)
    except ValueError:
        return
    folder = Path("/lake")
    assert (folder / checked).is_relative_to(folder)
    assert ".." not in Path(checked).parts
    assert not Path(checked).is_absolute()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a//b", "", "a/"])
def test_lake_path_refuses_what_is_outside(home: Path, path: str) -> None:
    with pytest.raises(DatasetError, match="is no path in the lake"):
        datasets.lake_path(path)
