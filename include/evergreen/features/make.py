"""All steps for some days, one after the other, without Airflow: for a notebook or a test."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from evergreen.features import build, checks, inputs, publish
from evergreen.spec.model import ModelSpec


def run_feature_pipeline(model: ModelSpec, days: Sequence[date]) -> dict[str, str]:
    """Have the features of `days` published; gives the content hash of each.

    Raises:
        RawDataError, FeatureError: as the steps do; nothing is published then.
    """
    wanted = inputs.compute_day_fingerprints(model, days)
    checks.raise_raw_faults(model, checks.check_raw_files(model, days))
    folders = build.build_features(model, wanted)
    checks.raise_feature_faults(model, checks.check_built_features(model, folders))
    return publish.publish_features(model, wanted, folders)
