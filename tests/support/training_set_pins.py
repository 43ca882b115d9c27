"""Small training sets to pin, and a reader of pins that knows only DVC's format."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from evergreen.lake.datasets import Manifest, open_dataset
from evergreen.storage import storage_path

MODEL = "shop"
NAMES = ("holdout", "label_counts", "recent", "train")


def publish_training_set(as_of: str, digit: str, value: int) -> Manifest:
    """Publish a training set with a fingerprint of this digit; files of the same value have the same bytes."""
    dataset, partition = open_dataset(f"training_sets/{MODEL}"), f"as_of={as_of}"
    staged = dataset.stage(partition, digit * 64)
    files = {name: staged / f"{name}.parquet" for name in NAMES}
    for name, file in files.items():
        pq.write_table(pa.table({name: [value] * 3}), file)
    return dataset.publish(partition, digit * 64, files, {"as_of": as_of})


def read_pin(file: Path, remote: str) -> dict[str, bytes]:
    """Return the files of the folder that a `.dvc` file names, each compared with its hash."""
    [out] = yaml.safe_load(file.read_text())["outs"]
    assert out["path"] == MODEL
    assert out["hash"] == "md5"

    def read_object(name: str) -> bytes:
        data = (storage_path(remote) / "files/md5" / name[:2] / name[2:]).read_bytes()
        assert hashlib.md5(data).hexdigest() == name.removesuffix(".dir")
        return data

    assert out["md5"].endswith(".dir")
    listing = read_object(out["md5"])
    entries = json.loads(listing)
    assert listing == json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True).encode()
    content = {entry["relpath"]: read_object(entry["md5"]) for entry in entries}
    assert (out["nfiles"], out["size"]) == (len(content), sum(map(len, content.values())))
    return content
