"""Publishing built periods, and all steps in one call."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from evergreen.errors import InputsChangedError
from evergreen.features import checks, inputs
from evergreen.features.inputs import FingerprintsByPeriod
from evergreen.features.steps import leave_out_faulty_periods, raise_faults
from evergreen.lake import datasets, tables
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

log = logging.getLogger(__name__)


def run_feature_pipeline(model: ModelSpec, periods: Sequence[str]) -> dict[str, str]:
    """Publish the features of `periods` without Airflow, and return the content hash of each period.

    Raises:
        FaultyPeriodsError: periods have faults; the others are published, if there are any.
        InputsChangedError: raw files or code changed meanwhile.
    """
    from evergreen.features import build  # Spark, which `publish_features` does not need

    fingerprints, faults = leave_out_faulty_periods(lambda: checks.validate_raw_files(model, periods))
    folders, faults = leave_out_faulty_periods(lambda: build.build_features(model, fingerprints), faults)
    folders, faults = leave_out_faulty_periods(lambda: checks.validate_features(model, folders), faults)
    published = publish_features(model, fingerprints, folders, required_periods=periods)
    raise_faults(model, faults, len(published))
    return published


def publish_features(
    model: ModelSpec,
    fingerprints: FingerprintsByPeriod,
    folders: Mapping[str, str],
    required_periods: Iterable[str] = (),
) -> dict[str, str]:
    """Publish the built periods, each atomically with its manifest; return the content hash of each published one.

    A period without a folder was left out by an earlier step, or another run has published it since.
    A period is left out if its raw files or the code of its features have changed since they were validated: the
    build may have read either version.

    Raises:
        InputsChangedError: one of `required_periods` was left out. The other periods are published.
    """
    dataset = inputs.features_dataset(model)
    current_inputs = inputs.feature_inputs(model, fingerprints)
    content_hashes, changed_periods = {}, set()
    for period, fingerprint in fingerprints.items():
        partition = datasets.period_partition(period)
        manifest = dataset.find(partition, fingerprint)
        if manifest is None and period not in folders:
            log.info("%s: was left out", period)
            continue
        if manifest is None:
            if compute_fingerprint(current_inputs[period]) != fingerprint:
                log.warning("%s: its raw data, or the code of its features, changed during the build: left out", period)
                changed_periods.add(period)
                continue
            staged = datasets.open_staged(folders[period])
            files = {name: staged / f"{name}.parquet" for name in feature_spec(model).tables}
            manifest = dataset.publish(partition, fingerprint, files, current_inputs[period])
        content_hashes[period] = manifest.content_hash
        rows = sum(file.rows or 0 for file in manifest.files.values())
        log.info("%s: %s rows, content %s", period, rows, manifest.content_hash[:12])
    tables.follow_publication(dataset, [datasets.period_partition(period) for period in content_hashes])
    if unpublished := sorted(changed_periods & {str(period) for period in required_periods}):
        raise InputsChangedError(
            f"raw data of {', '.join(unpublished)} or of a period before, or the code of the features, changed during "
            "the build: nothing of these periods was published; clear the run from the start"
        )
    return content_hashes
