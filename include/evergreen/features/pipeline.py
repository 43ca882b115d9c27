"""Publishing built days, and all steps in one call."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

from evergreen.errors import InputsChangedError
from evergreen.features import checks, inputs
from evergreen.features.inputs import FingerprintsByDay
from evergreen.lake import datasets
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

log = logging.getLogger(__name__)


def run_feature_pipeline(model: ModelSpec, days: Sequence[date]) -> dict[str, str]:
    """Publish the features of `days` without Airflow, and return the content hash of each day.

    Raises:
        RawDataError, FeatureError, InputsChangedError: raised by a step; nothing faulty is published.
    """
    from evergreen.features import build  # Spark, which `publish_features` does not need

    fingerprints = checks.validate_raw_files(model, days)
    folders = build.build_features(model, fingerprints)
    checks.validate_features(model, folders)
    return publish_features(model, fingerprints, folders, required_days=days)


def publish_features(
    model: ModelSpec,
    fingerprints: FingerprintsByDay,
    folders: Mapping[str, str],
    required_days: Iterable[date] = (),
) -> dict[str, str]:
    """Publish the built days, each atomically with its manifest, and return the content hash of each day.

    A day is left out if its raw files or the code of its features have changed since they were validated: the
    build may have read either version.

    Raises:
        InputsChangedError: one of `required_days` was left out. The other days are published.
    """
    dataset = inputs.features_dataset(model)
    current_inputs = inputs.feature_inputs(model, map(date.fromisoformat, fingerprints))
    content_hashes = {}
    for day, fingerprint in fingerprints.items():
        partition = datasets.day_partition(day)
        manifest = dataset.find(partition, fingerprint)
        if manifest is None:
            if compute_fingerprint(current_inputs[day]) != fingerprint:
                log.warning("%s: its raw data, or the code of its features, changed during the build: left out", day)
                continue
            files = {name: Path(folders[day]) / f"{name}.parquet" for name in feature_spec(model).tables}
            manifest = dataset.publish(partition, fingerprint, files, current_inputs[day])
        content_hashes[day] = manifest.content_hash
        rows = sum(file.rows or 0 for file in manifest.files.values())
        log.info("%s: %s rows, content %s", day, rows, manifest.content_hash[:12])
    if unpublished := sorted({str(day) for day in required_days} & fingerprints.keys() - content_hashes.keys()):
        raise InputsChangedError(
            f"raw data of {', '.join(unpublished)} or of a day before, or the code of the features, changed during "
            "the build: nothing of these days was published; clear the run from the start"
        )
    return content_hashes
