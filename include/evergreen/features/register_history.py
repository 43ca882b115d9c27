"""What a model's `build` gets of a register with history: what was valid when, not its rows, which know the future."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import reduce
from operator import and_, or_

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - as everywhere
from pyspark.sql.types import DateType, IntegralType, TimestampType

from evergreen.errors import Fault, FeatureError
from evergreen.spec.model import RawSource

_MOMENT, _BEGINS, _ENDS = _OWN_COLUMNS = ("_evergreen_moment", "_evergreen_begins", "_evergreen_ends")


class RegisterHistory:
    """A register with history, which `join_as_of` and `snapshot` ask for what was valid at some times.

    It answers for the periods that are built, and for the time `trailing` of the source before each of them. Asking for
    another time fails the build: a later one is the future, and after a correction of an earlier one nobody would know
    that these periods are to be built again.
    """

    def __init__(self, source: RawSource, rows: DataFrame, spans: Sequence[tuple[date, date]], timezone: str) -> None:
        """Take its rows, and the spans of days or instants that may be asked for, each without its end."""
        assert source.history
        self._source, self._history, self._timezone = source, source.history, timezone
        self._rows, self._spans = rows, spans

    def join_as_of(self, events: DataFrame, timestamp: str = "event_timestamp", keys: Sequence[str] = ()) -> DataFrame:
        """Return `events` with the other columns of the row that was valid at the `timestamp` of each, or with nulls.

        Each event is returned once. `keys` are the columns of `events` with the keys of the register, in its order, if
        they are not named alike. `timestamp` is an instant. For a register of days its day in the model's time zone
        counts, and it may be a day itself.

        Raises:
            FeatureError: columns of `events` have other types, or the names of columns of the register.
        """
        own_keys = [f"_evergreen_key_{name}" for name in self._history.keys]
        versions = self._versions().withColumnsRenamed(dict(zip(self._history.keys, own_keys, strict=True)))
        keys = keys or self._history.keys
        if len(keys) != len(own_keys):
            fix = f"name a column for each of {', '.join(self._history.keys)}"
            raise self._error(f"keys has {len(keys)} columns", fix)
        pairs = list(zip(keys, own_keys, strict=True))
        self._check_columns(events, timestamp, versions.columns)
        self._check_keys(events, versions, pairs)
        is_match = reduce(and_, (F.col(name) == F.col(own_key) for name, own_key in pairs))
        joined = self._with_moments(events, timestamp).join(versions, is_match & _is_valid(), "left")
        return joined.drop(*own_keys, *_OWN_COLUMNS)

    def snapshot(self, instants: DataFrame, timestamp: str = "event_timestamp") -> DataFrame:
        """Return each of a few `instants` with each row that is valid at its `timestamp`: its keys and other columns.

        Raises:
            FeatureError: as `join_as_of`.
        """
        versions = self._versions()
        self._check_columns(instants, timestamp, versions.columns)
        return F.broadcast(self._with_moments(instants, timestamp)).join(versions, _is_valid()).drop(*_OWN_COLUMNS)

    def _versions(self) -> DataFrame:
        """Return the rows that are valid at some time of the spans."""
        history = self._history
        by_key = Window.partitionBy(*history.keys).orderBy(history.valid_from)
        ends = F.col(history.valid_to) if history.valid_to else F.lead(history.valid_from).over(by_key)
        versions = self._rows.withColumns({_BEGINS: F.col(history.valid_from), _ENDS: ends}).drop(*history.validity)
        first, last = min(start for start, _ in self._spans), max(end for _, end in self._spans)
        return versions.where((F.col(_BEGINS) < last) & (F.col(_ENDS).isNull() | (F.col(_ENDS) > first)))

    def _with_moments(self, events: DataFrame, timestamp: str) -> DataFrame:
        """Add the day or instant at which an event asks for the register. Spark fails if it may not."""
        moment = F.col(timestamp)
        if self._source.has_dates_of_validity and isinstance(events.schema[timestamp].dataType, TimestampType):
            moment = F.to_date(F.from_utc_timestamp(moment, self._timezone))
        in_spans = reduce(or_, ((moment >= start) & (moment < end) for start, end in _merge(self._spans)))
        reach = f"the periods that are built and the {self._source.trailing} before each"
        fix = f"raise trailing of {self._source.name}, or leave out events of other times"
        message = F.concat(
            F.lit(f"{self._source.name} is asked for "),
            moment.cast("string"),
            F.lit(f", which is not in {reach}: {fix}"),
        )
        may_ask = F.when(moment.isNull() | in_spans, True).otherwise(F.raise_error(message).cast("boolean"))
        return events.where(may_ask).withColumn(_MOMENT, moment)

    def _check_columns(self, events: DataFrame, timestamp: str, added: Sequence[str]) -> None:
        existing = {name.lower() for name in events.columns}
        if clashes := [name for name in (_MOMENT, *added) if name.lower() in existing]:
            raise self._error(f"the events have columns {', '.join(clashes)} too", "rename or drop them before")
        kind = events.schema[timestamp].dataType
        if not isinstance(kind, (TimestampType, DateType) if self._source.has_dates_of_validity else TimestampType):
            raise self._error(
                f"{timestamp} is {kind.simpleString()}", "ask at an instant: a timestamp, not timestamp_ntz"
            )

    def _check_keys(self, events: DataFrame, versions: DataFrame, pairs: Sequence[tuple[str, str]]) -> None:
        for name, own_key in pairs:
            kind, own_kind = events.schema[name].dataType, versions.schema[own_key].dataType
            if kind != own_kind and not (isinstance(kind, IntegralType) and isinstance(own_kind, IntegralType)):
                problem = f"{name} is {kind.simpleString()}, and the key of the register {own_kind.simpleString()}"
                raise self._error(problem, "cast it before")

    def _error(self, problem: str, fix: str) -> FeatureError:
        return FeatureError("features", [Fault(f"register {self._source.name}", problem, fix)])


def _is_valid() -> Column:
    return (F.col(_BEGINS) <= F.col(_MOMENT)) & (F.col(_ENDS).isNull() | (F.col(_MOMENT) < F.col(_ENDS)))


def _merge(spans: Sequence[tuple[date, date]]) -> list[tuple[date, date]]:
    merged: list[tuple[date, date]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
