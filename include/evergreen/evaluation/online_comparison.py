"""Compares the online store with the offline one, for the keys that a request would name now.

The store is compared as of its own content: of the newest feature row before the end of what it holds, whatever the run
is as of. Until there it has received everything, and until the next row nothing changes in it. At a later moment every
value with a short TTL has expired offline, which says nothing about the store. Keys are those of the examples of the
last day before that end: keys of a holdout that lies further back, because labels are late or the store is ahead of the
run, may have left since.

Feast does not apply TTLs when it serves, and deletes no key: a key without current rows is served its last row for
ever. In training it had no value. Such values are counted apart, because the gate declares what a request gets.

A value is equal only if it is of the same row: a store that has lost rows may hold an old value that happens to be the
current one, and a server that applies TTLs leaves it out.
"""

# ruff: noqa: S608 - names are quoted

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureView, Field
from feast.types import UnixTimestamp

from evergreen.errors import first_line
from evergreen.feature_store import online_store
from evergreen.feature_store.online_features import OnlineColumns, OnlineValue, feature_ttls, read_online_values
from evergreen.feature_store.repository import feast_lock, open_feature_store, without_serving_delay
from evergreen.feature_store.training_sets import join_views
from evergreen.features.inputs import features_dataset, published_manifests, published_periods
from evergreen.gates.evidence import MissingEvidence, OnlineSample
from evergreen.ingest.databases import open_database, parquet_rows, quote_name
from evergreen.lake import datasets
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

_ENTITY_BATCH_ROWS = 65_536
_RELATIVE_TOLERANCE = 1e-6  # single precision on one side is no difference
_DAY = timedelta(days=1)
_TIMESTAMP = pa.timestamp("us", "UTC")
_SECOND = timedelta(seconds=1)  # stores keep event timestamps in seconds, at worst

Key = Mapping[str, Any]
"""Values of all join keys by name."""


class OfflineValue(NamedTuple):
    """A value of the offline store, and the event timestamp of its row; None twice if there is no row."""

    value: Any
    event_timestamp: datetime | None = None


OfflineColumns = Mapping[str, Sequence[OfflineValue]]
"""The values (n,) of each feature `view__feature`."""


def compare_online_store(model: ModelSpec, sample_size: int, run_as_of: datetime) -> OnlineSample | MissingEvidence:
    """Compare all features of up to `sample_size` keys of the last day with examples in what the online store holds.

    Rows without a value for one of the join keys are left out. The online store is read under Feast's lock: this waits
    for a materialization to end. `run_as_of` is only for the description.
    """
    store = open_feature_store(model.feature_model)
    service = store.get_feature_service(model.feature_service)
    views = [(store.get_feature_view(join.name), join) for join in service.feature_view_projections]
    names = sorted(
        {
            join.join_key_map.get(column.name, column.name)
            for view, join in views
            for column in view.entity_columns
            if column.name != "__dummy_id"
        }
    )
    if not names:
        return MissingEvidence("no view of the feature service has a key: leave this gate out")
    rebuild = f"run `evergreen online rebuild {model.feature_model}`"
    with feast_lock(model.feature_model):
        materialization = online_store.materialization_state(model)
        if problem := _staleness_problem(model, materialization, rebuild):
            return MissingEvidence(problem)
        spine = _newest_spine_files(model, materialization)
        if not spine:
            return MissingEvidence("no example was published in the periods that the online store holds")
        if absent := sorted(set(names) - set(pq.read_schema(next(iter(spine.values()))).names)):
            return MissingEvidence(f"the spine lacks the online store's keys {', '.join(absent)}")
        keys = sample_entities(list(spine.values()), names, sample_size)
        if not keys.num_rows:
            return MissingEvidence(f"no example of {max(spine)} has a value for all of {', '.join(names)}")
        try:
            online = read_online_values(store, service, keys.to_pylist())
        except Exception as error:  # of any class: it depends on the store
            return MissingEvidence(f"the online store cannot be read: {type(error).__name__}: {first_line(error)}")
    sources = [view.batch_source for view, _ in views if view.batch_source]
    as_of = _newest_event_timestamp(model, {(s.name, s.timestamp_field) for s in sources}, materialization)
    if as_of is None:
        return MissingEvidence("no feature row was published in the periods that the online store holds")
    offline = _offline_values(model, keys, as_of)
    ttls = feature_ttls(store, service)
    comparison = Comparison(keys.to_pylist(), as_of, ttls, rebuild)
    differences = comparison.find_differences(offline, online)
    expired = [(d.row, d.online.event_timestamp) for d in differences if d.is_expired and d.online.event_timestamp]
    last_values: dict[tuple[str, int], OfflineValue] = {}
    if expired:
        rows = sorted({row for row, _ in expired})
        # Rows that are older than all that the store holds of these keys are not what it should hold.
        reach = as_of - min(timestamp for _, timestamp in expired) + _SECOND
        for name, values in _offline_values(model, keys.take(rows), as_of, reach).items():
            last_values |= {(name, row): value for row, value in zip(rows, values, strict=True)}
    # Republished meanwhile, the store is compared with what it has not been given.
    if problem := _staleness_problem(model, materialization, rebuild):
        return MissingEvidence(problem)
    watermark = datetime.fromisoformat(materialization["watermark"])
    moment = describe_moment(as_of, watermark, run_as_of, max(spine))
    return comparison.summarize(sum(map(len, offline.values())), differences, last_values, moment)


class Difference(NamedTuple):
    """A value that is not the same in both stores."""

    feature: str
    row: int
    offline: OfflineValue
    online: OnlineValue
    is_expired: bool
    """Whether offline there is none, and the online one is older than the TTL of the view."""


class Comparison(NamedTuple):
    """What is known about the keys (n,) that are compared as of one moment."""

    keys: Sequence[Key]
    as_of: datetime
    ttls: Mapping[str, timedelta | None]
    rebuild: str
    """How to write the online store again, for messages."""

    def find_differences(self, offline: OfflineColumns, online: OnlineColumns) -> list[Difference]:
        """Compare each value of `offline`, (n,) per feature, with the one of `online`; an absent one has no values."""
        return list(self._iter_differences(offline, online))

    def _iter_differences(self, offline: OfflineColumns, online: OnlineColumns) -> Iterator[Difference]:
        absent = [OnlineValue(None)] * len(self.keys)
        for name, values in offline.items():
            for row, (value, served) in enumerate(zip(values, online.get(name, absent), strict=True)):
                if not _are_same(served, value):
                    is_expired = _is_missing(value.value) and served.is_expired(self.as_of, self.ttls.get(name))
                    yield Difference(name, row, value, served, is_expired)

    def summarize(
        self,
        value_count: int,
        differences: Sequence[Difference],
        last_values: Mapping[tuple[str, int], OfflineValue],
        moment: str,
    ) -> OnlineSample:
        """Count differences, and describe the first of each kind with its cause.

        Args:
            value_count: of compared values.
            differences: of these.
            last_values: by feature and number of the key, what the key's last row has, of expired ones.
            moment: as of which the stores were compared.
        """
        current = [difference for difference in differences if not difference.is_expired]
        expired = [difference for difference in differences if difference.is_expired]
        changed = [
            (difference, last)
            for difference in expired
            for last in [last_values.get((difference.feature, difference.row), OfflineValue(None))]
            if not _are_same(difference.online, last)
        ]
        return OnlineSample(
            value_count=value_count,
            mismatch_count=len(current),
            first_mismatch=self._describe(current[0]) if current else "",
            expired_count=len(expired),
            first_expired=self._describe_expired(expired[0]) if expired else "",
            changed_count=len(changed),
            first_changed=self._describe_changed(*changed[0]) if changed else "",
            moment=moment,
        )

    def _describe(self, difference: Difference) -> str:
        online, ttl = difference.online, self.ttls.get(difference.feature)
        values = f"{_text(online.value)} online, {_text(difference.offline.value)} offline as of {self.as_of}"
        if online.event_timestamp is None:
            cause = f"the key was never materialized, or the store has lost it: {self.rebuild}"
        elif _is_missing(difference.offline.value):
            limit = f"not older than its ttl of {ttl}" if ttl else "and its view has no ttl"
            cause = (
                f"the row of {online.event_timestamp} is {limit}, but no published row has it any more, and Feast "
                f"deletes none: empty the online store, then {self.rebuild}"
            )
        else:
            cause, fix, last = f"the store has a row of {online.event_timestamp}", self.rebuild, difference.offline
            if not _same_instant(online.event_timestamp, last.event_timestamp):
                cause += f", and the key's last one is of {last.event_timestamp}"
                if last.event_timestamp and online.event_timestamp > last.event_timestamp:
                    fix = f"empty the online store, then {fix}"  # some stores keep the newer of two rows
            cause += f": {fix}"
        return f"{self._name(difference)} is {values}: {cause}"

    def _describe_expired(self, difference: Difference) -> str:
        online, ttl = difference.online, self.ttls.get(difference.feature)
        return (
            f"{self._name(difference)} is {_text(online.value)} online, nothing offline as of {self.as_of}: the key "
            f"has left the view, its last row of {online.event_timestamp} is older than the ttl of {ttl}"
        )

    def _describe_changed(self, difference: Difference, last: OfflineValue) -> str:
        online = difference.online
        if last.event_timestamp is None:
            cause = f"but no row of {online.event_timestamp} is published any more"
        else:
            cause = f"but the key's last row, of {last.event_timestamp}, has {_text(last.value)}"
            if not _same_instant(online.event_timestamp, last.event_timestamp):
                cause += f", and the store has one of {online.event_timestamp}"
        fix = f"empty the online store, then {self.rebuild}"
        return f"{self._name(difference)} is {_text(online.value)} online, {cause}: {fix}"

    def _name(self, difference: Difference) -> str:
        key = ", ".join(f"{column}={value}" for column, value in self.keys[difference.row].items())
        return f"{difference.feature} of {key}"


def describe_moment(as_of: datetime, watermark: datetime, run_as_of: datetime, period: str) -> str:
    """Return as of when stores were compared, and how that relates to the run."""
    text = f"keys of {period} as of {as_of}; the online store holds values until {watermark}"
    if watermark == run_as_of:
        return text
    return f"{text}, {'after' if watermark > run_as_of else 'before'} this run's as_of {run_as_of}"


def values_equal(value: Any, reference: Any) -> bool:
    """Return whether both are missing (NaN is missing), equal, or numbers that are equal in single precision."""
    if _is_missing(value) or _is_missing(reference):
        return _is_missing(value) and _is_missing(reference)
    if isinstance(value, float | int) and isinstance(reference, float | int):
        return math.isclose(value, reference, rel_tol=_RELATIVE_TOLERANCE)
    return bool(value == reference)


def _are_same(online: OnlineValue, offline: OfflineValue) -> bool:
    """Return whether values are equal, and of the same row. Of no value, it does not matter where it comes from."""
    if not values_equal(online.value, offline.value):
        return False
    return _is_missing(online.value) or _same_instant(online.event_timestamp, offline.event_timestamp)


def _same_instant(online: datetime | None, offline: datetime | None) -> bool:
    """Return whether they are, as far as the online store can tell."""
    return online is None or (offline is not None and abs(online - offline) < _SECOND)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    return "nothing" if _is_missing(value) else repr(value)


def sample_entities(files: Sequence[Path], keys: Sequence[str], sample_size: int) -> pa.Table:
    """Return distinct sets of `keys` of Parquet files, in order, chosen by these sets alone; none lacks a key."""
    names = ", ".join(map(quote_name, keys))
    is_complete = " AND ".join(f"{quote_name(key)} IS NOT NULL" for key in keys)
    schema = pa.schema([pq.read_schema(files[0]).field(key) for key in keys])
    rows = " UNION ALL ".join(f"SELECT {names} FROM {parquet_rows(file)}" for file in files)
    with open_database() as con:
        con.execute(f"CREATE TABLE entities AS SELECT DISTINCT {names} FROM ({rows}) WHERE {is_complete}")
        [(count,)] = con.sql("SELECT count(*) FROM entities").fetchall()
        places = np.arange(count)
        if count > sample_size:
            places = np.sort(np.random.default_rng(count).choice(count, sample_size, replace=False))
        first, batches = 0, [schema.empty_table()]
        for batch in con.sql(f"SELECT * FROM entities ORDER BY {names}").to_arrow_reader(_ENTITY_BATCH_ROWS):
            chosen = places[np.searchsorted(places, first) : np.searchsorted(places, first + batch.num_rows)] - first
            batches.append(pa.Table.from_batches([batch.take(pa.array(chosen))]).cast(schema))
            first += batch.num_rows
    return pa.concat_tables(batches)


def _offline_values(
    model: ModelSpec, keys: pa.Table, as_of: datetime, ttl: timedelta | None = None
) -> dict[str, list[OfflineValue]]:
    """Return the features of keys (n,) as of one moment, by name in order; `ttl` replaces that of all views.

    The join also returns the event timestamp of the row that it chose, as one more feature of each view.
    """
    store = open_feature_store(model.feature_model)
    views, references, columns = list[FeatureView](), list[str](), dict[str, str]()
    for projection in store.get_feature_service(model.feature_service).feature_view_projections:
        view = store.get_feature_view(projection.name).with_projection(projection)
        assert view.batch_source is not None
        time, name = view.batch_source.timestamp_field, projection.name_to_use()
        view.features = [*view.features, Field(name=time, dtype=UnixTimestamp)]
        view.ttl = view.ttl if ttl is None else ttl
        view.batch_source = without_serving_delay(view.batch_source)  # the store has been given all rows until then
        views.append(view)
        references += [f"{name}:{feature}" for feature in (*(field.name for field in projection.features), time)]
        columns |= {f"{name}__{field.name}": f"{name}__{time}" for field in projection.features}
    request = keys.append_column("event_timestamp", pa.array([as_of] * keys.num_rows, _TIMESTAMP))
    joined = join_views(store, views, references, request)
    instants = {name: joined[name].cast(_TIMESTAMP, safe=False).to_pylist() for name in set(columns.values())}
    return {
        name: list(map(OfflineValue, joined[name].to_pylist(), instants[columns[name]])) for name in sorted(columns)
    }


def _staleness_problem(model: ModelSpec, materialization: Mapping[str, Any], rebuild: str) -> str | None:
    """Return why the online store cannot be compared with what is published now, or None."""
    if not materialization:
        return f"nothing was materialized for {model.feature_model} yet"
    periods = materialization["periods"]
    if not periods:
        return f"the online store was being written when the writer ended: {rebuild}, then evaluate again"
    calendar, end = feature_spec(model).calendar, datetime.fromisoformat(materialization["watermark"])
    relevant = [name for name in published_periods(model) if name >= min(periods) and calendar.start(name) < end]
    published = {name: manifest.content_hash for name, manifest in published_manifests(model, relevant).items()}
    if changed := sorted(name for name in {*published, *periods} if published.get(name) != periods.get(name)):
        return (
            f"features of {', '.join(changed)} were published again since the online store was written: "
            f"{rebuild}, then evaluate again"
        )
    return None


def _newest_spine_files(model: ModelSpec, materialization: Mapping[str, Any]) -> dict[str, Path]:
    """Return the examples of the last day that has some in what the store holds: a file per period, newest first."""
    published, spec = features_dataset(model), feature_spec(model)
    files: dict[str, Path] = {}
    for period in sorted(materialization["periods"], reverse=True):
        if files and spec.calendar.start(period) <= spec.calendar.start(max(files)) - _DAY:
            break
        manifest = published.manifest(datasets.period_partition(period))
        if manifest and manifest.files[spec.spine].rows:
            files[period] = published.file_path(manifest, spec.spine)
    return files


def _newest_event_timestamp(
    model: ModelSpec, sources: set[tuple[str, str]], materialization: Mapping[str, Any]
) -> datetime | None:
    """Return the newest event timestamp before the materialization's end, in tables by (name, timestamp column)."""
    published = features_dataset(model)
    end = pa.scalar(datetime.fromisoformat(materialization["watermark"]), _TIMESTAMP)
    for period in sorted(materialization["periods"], reverse=True):
        manifest = published.manifest(datasets.period_partition(period))
        timestamps = []
        for table, column in sorted(sources):
            if manifest is None or table not in manifest.files:
                continue
            rows = pq.read_table(published.file_path(manifest, table), columns=[column], partitioning=None)
            times = rows[column].cast(_TIMESTAMP)
            timestamps.append(pc.max(times.filter(pc.less(times, end))).as_py())
        if newest := [timestamp for timestamp in timestamps if timestamp]:
            return max(newest)
    return None
