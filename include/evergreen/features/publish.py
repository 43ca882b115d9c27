"""Built days become visible, each atomically, with its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

from evergreen.features import inputs
from evergreen.features.inputs import FingerprintsByDay
from evergreen.lake import datasets
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec


def publish_features(model: ModelSpec, fingerprints: FingerprintsByDay, folders: Mapping[str, str]) -> dict[str, str]:
    """Make the built days visible; gives the content hash of each day that is published now.

    A day is left out, and nothing of it published, if its raw files or the code of its features have changed
    since it was checked: nobody knows what was read.
    """
    features, target = feature_spec(model), inputs.features_dataset(model)
    now = inputs.feature_inputs(model, map(date.fromisoformat, fingerprints))
    contents = {}
    for day, mark in fingerprints.items():
        partition = datasets.day_partition(day)
        manifest = target.find(partition, mark)
        if manifest is None:
            if compute_fingerprint(now[day]) != mark:
                print(f"{day}: its raw data, or the code of its features, changed while it was made: left out")
                continue
            files = {name: Path(folders[day]) / f"{name}.parquet" for name in features.tables}
            manifest = target.publish(partition, mark, files, now[day])
        contents[day] = manifest.content_hash
        rows = sum(file.rows or 0 for file in manifest.files.values())
        print(f"{day}: {rows} rows, content {manifest.content_hash[:12]}")
    return contents
