"""A sample and its events as raw files, one for each period, so that a first candidate can be trained on it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import Fault
from evergreen.ingest.conversions import arrow_type
from evergreen.ingest.raw_files import raw_file, raw_folder
from evergreen.periods import Calendar
from evergreen.scaffold.files import ScaffoldError
from evergreen.scaffold.guesses import DraftColumn, EventsDraft, ModelDraft
from evergreen.scaffold.samples import Sample
from evergreen.settings import variable_name
from evergreen.storage import create_if_absent, is_local


class DeliveredPeriods(NamedTuple):
    """How many raw files were written, and how many were there."""

    created: int
    existing: int


def check_delivery(sample: Sample) -> None:
    """Check that a sample can be delivered as raw files here.

    Raises:
        ScaffoldError: it comes from where the model reads its data anyway, or raw data is delivered to an object store.
    """
    if sample.origin.format in ("query", "delta"):
        problem = f"a model reads its data from the {'database' if sample.origin.format == 'query' else 'table'} itself"
        raise ScaffoldError("delivery", [Fault("--deliver", problem, "leave it out")])
    if not is_local(raw_folder()):
        problem = (
            f"{variable_name('raw')} is {raw_folder()}, and a sample is only delivered to a folder of this machine"
        )
        raise ScaffoldError("delivery", [Fault("--deliver", problem, "leave it out, and deliver as your data arrives")])


def deliver_sample(sample: Sample, draft: ModelDraft) -> DeliveredPeriods:
    """Write a raw file for each period of the model, also for those without rows; files that exist stay.

    Raises:
        ScaffoldError: a value is not of the type that its column declares.
    """
    return _deliver(sample, draft.columns, draft.calendar, delivered_periods(sample, draft))


def deliver_events(
    events: Sample, drafted: EventsDraft, calendar: Calendar, periods: Iterable[str]
) -> DeliveredPeriods:
    """Write a raw file of events for each of the model's periods, as `deliver_sample` does.

    Raises:
        ScaffoldError: a value is not of the type that its column declares.
    """
    return _deliver(events, drafted.columns, calendar, periods)


def delivered_periods(sample: Sample, draft: ModelDraft) -> list[str]:
    """Return the periods of which all sources are delivered: those of the sample, and those before of its events."""
    periods, calendar = sample.periods(draft.columns_of("time")[0].raw_name, draft.calendar), draft.calendar
    first, end = calendar.shift(periods[0], -draft.lead), calendar.shift(periods[-1], 1)
    return list(calendar.periods_between(first, end))


def _deliver(
    sample: Sample, columns: Sequence[DraftColumn], calendar: Calendar, periods: Iterable[str]
) -> DeliveredPeriods:
    time = next(column.raw_name for column in columns if column.role == "time")
    schema = pa.schema([(column.raw_name, arrow_type(column.type)) for column in columns])
    created = existing = 0
    for period in periods:
        rows = sample.rows_of(period, time, schema.names, calendar)
        try:
            table = rows.cast(schema)
        except pa.ArrowException as error:
            fault = Fault(period, f"cannot be written with the declared types: {error}", "--ignore the column")
            raise ScaffoldError("delivery", [fault]) from None
        content = io.BytesIO()
        pq.write_table(table, content, coerce_timestamps="us")
        if create_if_absent(raw_file(sample.origin.name, period), content.getvalue()):
            created += 1
        else:
            existing += 1
    return DeliveredPeriods(created, existing)
