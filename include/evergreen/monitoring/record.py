"""What is known of a champion since it learned: the record that monitoring publishes, and readers read.

Importing this module loads no engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from hashlib import sha256
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from evergreen.errors import DatasetError, validation_problem
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset
from evergreen.periods import Calendar
from evergreen.spec import Frozen, NonEmptyStr, Period
from evergreen.storage import Sha256, read_version

RECORD_FILE = "record"
SERIES_FILE = "series"
REPORT_FILE = "report"

_PREFIX = "record="
_DIGITS = 16


class ChangeRecord(Frozen):
    """A measure of a column that is in an alarm."""

    column: NonEmptyStr = Field(
        description="`table.column`; of the number of its rows, the table; of performance, the gate with its metric"
    )
    measure: Literal["level", "shape", "spread", "missing", "unseen", "rows", "performance", "skew"]
    deviation: float | None = Field(
        description="from what the reference lets expect, in standard deviations between days; None: days of the "
        "reference do not differ at all"
    )
    effect: float | None = Field(
        description="the same in the unit of the measure; of performance the loss, in the metric's; None: it has no "
        "value"
    )

    @field_validator("effect")
    @classmethod
    def _without_nan(cls, effect: float | None) -> float | None:
        return effect if effect is not None and math.isfinite(effect) else None  # JSON has no NaN

    def describe(self) -> str:
        """Return it in a few words."""
        if self.effect is None:
            how = "no value"
        elif self.deviation is None:
            how = "never in the reference"
        else:
            how = f"{self.deviation:+.1f} sd between days"
        return f"{self.column} {self.measure} ({how})"


class AlarmRecord(Frozen):
    """An alarm, and the day on which all that it names had returned; None: it is open."""

    rule: Literal["break", "drift", "performance", "skew"]
    opened: date
    closed: date | None
    changes: tuple[ChangeRecord, ...] = Field(min_length=1)

    @property
    def change_names(self) -> tuple[str, ...]:
        """Return what has changed, as the alarm's entry in the ledger names it."""
        return tuple(f"{change.column} {change.measure}" for change in self.changes)

    def describe(self) -> str:
        """Return it in a line."""
        named = ", ".join(change.describe() for change in self.changes[:3])
        rest = f" and {len(self.changes) - 3} more" if len(self.changes) > 3 else ""
        return f"{self.rule} since {self.opened}: {named}{rest}"


class PerformanceRecord(Frozen):
    """How a champion does by the labels that have matured since it was promoted, in one metric. Days count alike."""

    gate: NonEmptyStr = Field(description="whose metric it is")
    days: int = Field(description="with a value, since it was promoted")
    last_day: date | None = Field(description="the last of them")
    holdout: float | None = Field(description="the mean over days of what it was judged on; None: it is not known")
    mean: float | None = Field(description="over the days since; None: there is none")
    low: float | None = Field(description="end of the interval of the mean, which holds on all days; None: unbounded")
    high: float | None = Field(description="the other end")


class ServedColumn(Frozen):
    """A feature that servers used with other values than the offline store has."""

    column: NonEmptyStr
    differing: int = Field(description="rows that differ")
    rows: int = Field(description="that were compared")
    cause: str = Field(description="what explains most of them in the last period that had some")
    example: NonEmptyStr

    @property
    def share(self) -> float:
        """The share of the rows that differ."""
        return self.differing / max(self.rows, 1)


class ServingRecord(Frozen):
    """What the last periods of a champion's serving log show."""

    first_period: Period
    last_period: Period
    rows: int = Field(description="predictions of the champion, each id once")
    duplicates: int = Field(description="further rows with the same ids")
    other_models: int = Field(description="rows of other models")
    sampled: int = Field(description="rows that were compared")
    features: int = Field(description="that were compared with the offline store")
    differing_features: int
    columns: tuple[ServedColumn, ...] = Field(description="those that differ, largest share first; not all are listed")
    predictions: int = Field(description="that were compared with the model")
    differing_predictions: int
    largest_difference: float | None = None
    foreign_files: int = Field(description="that are left out")
    foreign: tuple[str, ...] = Field(description="newest first, each with why; not all are listed")


class EstimateRecord(Frozen):
    """What a metric is expected to be by predictions alone. An estimate: nothing acts on it."""

    gate: NonEmptyStr = Field(description="whose metric it is")
    days: int = Field(description="with an estimate, since the champion was promoted")
    last_day: date | None = Field(None, description="the last of them")
    last: float | None = Field(None, description="its estimate")
    realised_days: int = Field(0, description="of these, with a value on matured labels")
    error: float | None = Field(
        None, description="the mean absolute difference of both on these days; None: there is none"
    )
    problem: str | None = Field(None, description="why there is no estimate; None: there is one")


class LabelledMetricRecord(Frozen):
    """A metric of what the champion has served, by posted labels. Nothing acts on it."""

    gate: NonEmptyStr = Field(description="whose metric it is")
    days: int = Field(description="with a value")
    last_day: date | None = Field(None, description="the last of them")
    last: float | None = Field(None, description="its value")
    matured_days: int = Field(0, description="of these, with a value on matured labels of the spine")
    distance: float | None = Field(
        None, description="the mean absolute difference of both on these days; None: there is none"
    )


class LabelledPeriodRecord(Frozen):
    """What posted labels show of what a model has served in a period."""

    period: Period
    version: str = Field(description="of the model, as the log names it")
    predictions: int = Field(description="that were logged, or are in the sample of them")
    labelled: int = Field(description="of these, with a label")
    is_sample: bool = Field(description="whether the log has more predictions")
    values: Mapping[str, float] = Field(description="by the gate's name")
    first_values: Mapping[str, float] = Field(
        {}, description="by the labels that were known first; empty if none was corrected"
    )


class PostedLabelsRecord(Frozen):
    """What labels that were posted by prediction id show of the last periods that have some. Nothing acts on it."""

    first_period: Period
    last_period: Period
    labelled: int = Field(description="predictions with a label")
    corrected: int = Field(description="ids whose label was another one before")
    contradictory: int = Field(description="ids with several labels of one time: they are left out")
    unknown: int = Field(description="ids that no log has")
    of_spine: int = Field(description="ids whose label is not that of the spine for the same keys and time")
    metrics: tuple[LabelledMetricRecord, ...]
    periods: tuple[LabelledPeriodRecord, ...] = Field(description="oldest first, with each model that has served")
    foreign_files: int = Field(description="that are left out")
    foreign: tuple[str, ...] = Field(description="newest first, each with why; not all are listed")


class MonitoringRecord(Frozen):
    """What is known of the data and the performance of a champion, on all days that were monitored."""

    champion_version: NonEmptyStr
    champion_content: Sha256
    as_of: Period = Field(
        description="the champion has data until this period, exclusively; from it on it is monitored"
    )
    reference_days: int = Field(description="of the data that it was made from, with which days are compared")
    judged_until: date | None = Field(description="the last day that was judged; None: there is none")
    periods: int = Field(description="periods with a histogram")
    alarms: tuple[AlarmRecord, ...]
    problems: tuple[str, ...] = Field(description="what could not be monitored, and why")
    performance: tuple[PerformanceRecord, ...] = ()
    revisions: tuple[str, ...] = Field((), description="periods that were measured again, and what had changed")
    serving: ServingRecord | None = Field(None, description="None: no log of a server is known")
    estimates: tuple[EstimateRecord, ...] = Field((), description="before labels mature; nothing acts on them")
    labels: PostedLabelsRecord | None = Field(None, description="by prediction id; None: none was posted")

    @property
    def open_alarms(self) -> tuple[AlarmRecord, ...]:
        return tuple(alarm for alarm in self.alarms if alarm.closed is None)


def is_newest(record: MonitoringRecord, end: str, calendar: Calendar) -> bool:
    """Return whether a run that knows the data until `end` knows all that the record is about."""
    days = [alarm.opened for alarm in record.open_alarms]
    newest = max([*days, record.judged_until] if record.judged_until else days, default=date.min)
    return calendar.date_of(calendar.shift(end, -1)) >= newest


def monitoring_dataset(model: str) -> Dataset:
    """Return the dataset of a model's histograms, references and records."""
    return datasets.open_dataset(f"monitoring/{model}")


def record_partition(content: str) -> str:
    """Return the partition with the record of a champion."""
    return f"{_PREFIX}{content[:_DIGITS]}"


def read_record(model: str, content: str) -> MonitoringRecord | None:
    """Return the record of the champion with this content, or None if none is published.

    Raises:
        DatasetError: it is damaged.
    """
    data = _read_file(model, content, RECORD_FILE)
    if data is None:
        return None
    try:
        record = MonitoringRecord.model_validate_json(data)
    except ValidationError as error:
        problem = validation_problem(error)
        place = f"the record of monitoring of {model}, {record_partition(content)},"
        raise DatasetError(f"{place} is damaged: {problem}: find out who can write to the lake") from None
    return record if record.champion_content == content else None


def read_report(model: str, content: str) -> bytes | None:
    """Return the monitoring report on the champion with this content, a page; None if none is published.

    Raises:
        DatasetError: its manifest is damaged, or it is not what the manifest names.
    """
    return _read_file(model, content, REPORT_FILE)


def _read_file(model: str, content: str, name: str) -> bytes | None:
    dataset = monitoring_dataset(model)
    manifest = dataset.manifest(record_partition(content))
    if manifest is None or name not in manifest.files:
        return None
    path = dataset.published_path(manifest, name)
    stored = read_version(path)
    data = stored.data if stored else b""
    datasets.check_published_hash(path, sha256(data).hexdigest(), manifest.files[name].sha256)
    return data
