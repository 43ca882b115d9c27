"""All steps for some days, one after the other, without Airflow: for a notebook or a test."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from evergreen.features import build, checks, inputs, publish
from evergreen.spec.model import Model


def make(model: Model, days: Sequence[date]) -> dict[str, str]:
    """Have the features of `days` published; gives the content hash of each.

    Raises:
        RawDataError, FeatureError: as the steps do; nothing is published then.
    """
    wanted = inputs.fingerprints(model, days)
    checks.refuse_raw(model, checks.raw(model, days))
    folders = build.build(model, wanted)
    checks.refuse_built(model, checks.built(model, folders))
    return publish.publish(model, wanted, folders)
