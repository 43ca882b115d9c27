"""Compares the inputs that serving provides with those that a model learned from: columns, and values of entities.

Values are those of sampled entities of the holdout, in the online store and in the offline one, as of one moment: that
of the newest feature row before the end of what the online store holds. Until there the store has received everything,
and until the next row nothing changes in it. At a later moment every value with a short TTL has expired offline, which
says nothing about the store.

Feast does not apply TTLs when it serves, and deletes no key: a key without current rows is served its last row for
ever. In training it had no value. Such values count as differences, because predictions use them. But only entities of
the holdout's last day are sampled, since nobody requests predictions for an entity that no longer exists.
"""

# ruff: noqa: S608 - names are quoted

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evergreen.errors import ScoringError, first_line
from evergreen.feature_store import online_store
from evergreen.feature_store.model_inputs import coarse_type
from evergreen.feature_store.repository import feast_lock, open_feature_store
from evergreen.feature_store.training_sets import historical_features
from evergreen.features.inputs import features_dataset, published_manifests, published_periods
from evergreen.gates.evidence import ColumnTypes, InputSignature, MissingEvidence, OnlineSample
from evergreen.ingest.databases import open_database, parquet_rows, quote_name
from evergreen.lake import datasets
from evergreen.scoring import predictions
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

_ENTITY_BATCH_ROWS = 65_536
_RELATIVE_TOLERANCE = 1e-6  # single precision on one side is no difference


def collect_input_signature(
    model: ModelSpec,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    columns: ColumnTypes | MissingEvidence,
) -> InputSignature | MissingEvidence:
    """Pair the candidate's input columns, with the `coarse_type` of its training set, with the `columns` of serving."""
    if isinstance(columns, MissingEvidence):
        return columns
    names = tuple(candidate.inputs["features"])
    try:
        with predictions.candidate_folder(model, candidate) as folder:
            predictions.load_model(folder).check_columns(names)
    except ScoringError as error:
        return MissingEvidence(f"the candidate cannot predict: {error}")
    schema = training_set.files["train"].schema or {}
    return InputSignature(tuple((name, coarse_type(schema.get(name, "none"))) for name in names), columns)


def serving_columns(model: ModelSpec) -> ColumnTypes | MissingEvidence:
    """Return what serving provides, in order: request columns, typed as in the newest spine, then features."""
    from feast.type_map import feast_value_type_to_pa

    newest = features_dataset(model).newest()
    if newest is None:
        return MissingEvidence(f"{model.feature_model} has no published features: the types of a request are not known")
    spine = feature_spec(model).spine
    schema = newest.files[spine].schema or {}
    if unknown := [name for name in model.request_columns if name not in schema]:
        text = f"{', '.join(unknown)} of request_columns is no column of {spine}"
        return MissingEvidence(f"{text}, as published for {newest.partition}")
    service = open_feature_store(model.feature_model).get_feature_service(model.feature_service)
    features = [
        (f"{view.name_to_use()}__{feature.name}", str(feast_value_type_to_pa(feature.dtype.to_value_type())))
        for view in service.feature_view_projections
        for feature in view.features
    ]
    request = [(name, schema[name]) for name in model.request_columns]
    return tuple((name, coarse_type(type_)) for name, type_ in (*request, *features))


def compare_online_store(
    model: ModelSpec, training_set: datasets.Manifest, holdout: Path, sample_size: int
) -> OnlineSample | MissingEvidence:
    """Compare all features of up to `sample_size` entities of the last day of the Parquet file `holdout`.

    An entity is a set of values of all join keys; rows without a value for one of them are left out. The online store
    is read under Feast's lock: this waits for a materialization to end.
    """
    store = open_feature_store(model.feature_model)
    service = store.get_feature_service(model.feature_service)
    views = [(store.get_feature_view(join.name), join) for join in service.feature_view_projections]
    keys = sorted(
        {
            join.join_key_map.get(column.name, column.name)
            for view, join in views
            for column in view.entity_columns
            if column.name != "__dummy_id"
        }
    )
    if absent := sorted(set(keys) - set(pq.read_schema(holdout).names)):
        return MissingEvidence(f"the holdout lacks the online store's keys {', '.join(absent)}")
    entities = sample_entities(holdout, keys, sample_size, training_set.files["holdout"].sha256)
    if not entities.num_rows:
        return MissingEvidence(f"no row of the holdout's last day has a value for all of {', '.join(keys)}")
    with feast_lock(model.feature_model):
        materialization = online_store.materialization_state(model)
        if problem := _staleness_problem(model, materialization):
            return MissingEvidence(problem)
        try:
            online = store.get_online_features(service, entities.to_pylist(), full_feature_names=True).to_dict()
        except Exception as error:  # of any class: it depends on the store
            return MissingEvidence(f"the online store cannot be read: {type(error).__name__}: {first_line(error)}")
    sources = [view.batch_source for view, _ in views if view.batch_source]
    as_of = _newest_event_timestamp(model, {(s.name, s.timestamp_field) for s in sources}, materialization)
    if as_of is None:
        return MissingEvidence("no feature row was published in the days that the online store holds")
    timestamps = pa.array([as_of] * entities.num_rows, pa.timestamp("us", "UTC"))
    request = entities.append_column("event_timestamp", timestamps)
    request = request.append_column(datasets.ROW_COLUMN, pa.array(range(entities.num_rows), pa.int64()))
    offline = historical_features(model, request).sort_by(datasets.ROW_COLUMN)
    if problem := _staleness_problem(model, materialization):
        return MissingEvidence(problem)
    features = sorted(set(offline.column_names) - set(request.column_names))
    values = {name: offline[name].to_pylist() for name in features}
    return compare_feature_values(entities.to_pylist(), values, online, as_of)


def compare_feature_values(
    entities: Sequence[Mapping[str, Any]],
    offline: Mapping[str, Sequence[Any]],
    online: Mapping[str, Sequence[Any]],
    as_of: datetime,
) -> OnlineSample:
    """Compare each value of `offline`, (n,) per feature, with the one of `online`; an absent feature has no values."""
    mismatches = [
        (name, entity, offline_value, online_value)
        for name, values in offline.items()
        for entity, offline_value, online_value in zip(
            entities, values, online.get(name, [None] * len(entities)), strict=True
        )
        if not values_equal(offline_value, online_value)
    ]
    example = ""
    if mismatches:
        name, entity, *values = mismatches[0]
        key = ", ".join(f"{column}={value}" for column, value in entity.items())
        offline_text, online_text = ("nothing" if _is_missing(value) else repr(value) for value in values)
        example = f"{name} of {key} is {online_text} online, {offline_text} offline as of {as_of}"
    return OnlineSample(sum(map(len, offline.values())), len(mismatches), example)


def values_equal(value: Any, reference: Any) -> bool:
    """Return whether both are missing (NaN is missing), equal, or numbers that are equal in single precision."""
    if _is_missing(value) or _is_missing(reference):
        return _is_missing(value) and _is_missing(reference)
    if isinstance(value, float | int) and isinstance(reference, float | int):
        return math.isclose(value, reference, rel_tol=_RELATIVE_TOLERANCE)
    return bool(value == reference)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def sample_entities(holdout: Path, keys: Sequence[str], sample_size: int, seed: str) -> pa.Table:
    """Return distinct key sets of the last day of a Parquet file, in order, chosen by the holdout's content alone."""
    names, rows = ", ".join(map(quote_name, keys)), parquet_rows(holdout)
    is_complete = " AND ".join(f"{quote_name(key)} IS NOT NULL" for key in keys)
    schema = pa.schema([pq.read_schema(holdout).field(key) for key in keys])
    with open_database() as con:
        last_day = f"day = (SELECT max(day) FROM {rows})"
        con.execute(f"CREATE TABLE entities AS SELECT DISTINCT {names} FROM {rows} WHERE {last_day} AND {is_complete}")
        [(count,)] = con.sql("SELECT count(*) FROM entities").fetchall()
        places = np.arange(count)
        if count > sample_size:
            rng = np.random.default_rng(int(seed[:16], 16))
            places = np.sort(rng.choice(count, sample_size, replace=False))
        first, batches = 0, [schema.empty_table()]
        for batch in con.sql(f"SELECT * FROM entities ORDER BY {names}").to_arrow_reader(_ENTITY_BATCH_ROWS):
            chosen = places[np.searchsorted(places, first) : np.searchsorted(places, first + batch.num_rows)] - first
            batches.append(pa.Table.from_batches([batch.take(pa.array(chosen))]).cast(schema))
            first += batch.num_rows
    return pa.concat_tables(batches)


def _staleness_problem(model: ModelSpec, materialization: Mapping[str, Any]) -> str | None:
    """Return why the online store cannot be compared with what is published now, or None."""
    if not materialization:
        return f"nothing was materialized for {model.feature_model} yet"
    periods = materialization["periods"]
    if not periods:
        return "the online store was being written when the writer ended: materialize again"
    calendar, end = feature_spec(model).calendar, datetime.fromisoformat(materialization["watermark"])
    relevant = [name for name in published_periods(model) if name >= min(periods) and calendar.start(name) < end]
    published = {name: manifest.content_hash for name, manifest in published_manifests(model, relevant).items()}
    if changed := sorted(name for name in {*published, *periods} if published.get(name) != periods.get(name)):
        return (
            f"features of {', '.join(changed)} were published again since the online store was written: "
            "materialize, then evaluate again"
        )
    return None


def _newest_event_timestamp(
    model: ModelSpec, sources: set[tuple[str, str]], materialization: Mapping[str, Any]
) -> datetime | None:
    """Return the newest event timestamp before the materialization's end, in tables by (name, timestamp column)."""
    published = features_dataset(model)
    end = pa.scalar(datetime.fromisoformat(materialization["watermark"]), pa.timestamp("us", "UTC"))
    for period in sorted(materialization["periods"], reverse=True):
        manifest = published.manifest(datasets.period_partition(period))
        timestamps = []
        for table, column in sorted(sources):
            if manifest is None or table not in manifest.files:
                continue
            rows = pq.read_table(published.file_path(manifest, table), columns=[column], partitioning=None)
            times = rows[column].cast(pa.timestamp("us", "UTC"))
            timestamps.append(pc.max(times.filter(pc.less(times, end))).as_py())
        if newest := [timestamp for timestamp in timestamps if timestamp]:
            return max(newest)
    return None
