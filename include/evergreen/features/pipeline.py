"""Publishing built days, and all steps in one call."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

from evergreen.errors import InputsChangedError
from evergreen.features import checks, inputs
from evergreen.features.inputs import FingerprintsByDay
from evergreen.features.steps import leave_out_faulty_days, raise_faults
from evergreen.lake import datasets
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

log = logging.getLogger(__name__)


def run_feature_pipeline(model: ModelSpec, days: Sequence[date]) -> dict[str, str]:
    """Publish the features of `days` without Airflow, and return the content hash of each day.

    Raises:
        FaultyDaysError: days have faults; the others are published, if there are any.
        InputsChangedError: raw files or code changed meanwhile.
    """
    from evergreen.features import build  # Spark, which `publish_features` does not need

    fingerprints, faults = leave_out_faulty_days(lambda: checks.validate_raw_files(model, days))
    folders, faults = leave_out_faulty_days(lambda: build.build_features(model, fingerprints), faults)
    folders, faults = leave_out_faulty_days(lambda: checks.validate_features(model, folders), faults)
    published = publish_features(model, fingerprints, folders, required_days=days)
    raise_faults(model, faults, len(published))
    return published


def publish_features(
    model: ModelSpec,
    fingerprints: FingerprintsByDay,
    folders: Mapping[str, str],
    required_days: Iterable[date] = (),
) -> dict[str, str]:
    """Publish the built days, each atomically with its manifest, and return the content hash of each published day.

    A day without a folder was left out by an earlier step, or another run has published it since.
    A day is left out if its raw files or the code of its features have changed since they were validated: the
    build may have read either version.

    Raises:
        InputsChangedError: one of `required_days` was left out. The other days are published.
    """
    dataset = inputs.features_dataset(model)
    current_inputs = inputs.feature_inputs(model, map(date.fromisoformat, fingerprints))
    content_hashes, changed_days = {}, set()
    for day, fingerprint in fingerprints.items():
        partition = datasets.day_partition(day)
        manifest = dataset.find(partition, fingerprint)
        if manifest is None and day not in folders:
            log.info("%s: was left out", day)
            continue
        if manifest is None:
            if compute_fingerprint(current_inputs[day]) != fingerprint:
                log.warning("%s: its raw data, or the code of its features, changed during the build: left out", day)
                changed_days.add(day)
                continue
            files = {name: Path(folders[day]) / f"{name}.parquet" for name in feature_spec(model).tables}
            manifest = dataset.publish(partition, fingerprint, files, current_inputs[day])
        content_hashes[day] = manifest.content_hash
        rows = sum(file.rows or 0 for file in manifest.files.values())
        log.info("%s: %s rows, content %s", day, rows, manifest.content_hash[:12])
    if unpublished := sorted(changed_days & {str(day) for day in required_days}):
        raise InputsChangedError(
            f"raw data of {', '.join(unpublished)} or of a day before, or the code of the features, changed during "
            "the build: nothing of these days was published; clear the run from the start"
        )
    return content_hashes
