"""Whether the online store serves what the model would have been trained on, for sampled entities.

Compared as of one moment: that of the newest feature row before the end of what is in the online store. Up to
there the store has been told everything, and until the next row comes nothing changes in it. At a later moment
every value with a short TTL would have expired offline, which tells nothing of the store.

Feast does not look at TTLs when it serves, and forgets no key: a key that has no row any more is served its last
one for ever. In training it had no value. Such values are among the differences, because predictions are made with
them; but only entities of the holdout's last day are sampled, since nobody asks for one that is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evergreen.errors import first_line
from evergreen.evaluation.difference import compare_feature_values
from evergreen.feature_store import online_store
from evergreen.feature_store.repository import feast_lock, open_feature_store
from evergreen.feature_store.training_sets import historical_features
from evergreen.features.inputs import features_dataset as features_dataset
from evergreen.gates.evidence import MissingEvidence, OnlineSample
from evergreen.lake import datasets
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import midnight


def compare_online_store(
    model: ModelSpec, training_set: datasets.Manifest, holdout: pa.Table, sample_size: int
) -> OnlineSample | MissingEvidence:
    """Compare all features of up to `size` entities of the last day of `table`, the holdout.

    An entity is a set of values of all join keys; rows that lack one of them are left out.

    The online store is read while nobody writes it: this waits for a materialization to end.
    """
    store = open_feature_store()
    service = store.get_feature_service(model.feature_service)
    keys = _join_keys(model)
    if absent := [key for key in keys if key not in holdout.column_names]:
        return MissingEvidence(f"the holdout lacks {', '.join(absent)}, by which the online store is asked")
    entities = _sample_entities(holdout, keys, sample_size, training_set.files["holdout"].sha256)
    if not entities.num_rows:
        return MissingEvidence(f"no row of the holdout's last day has a value for all of {', '.join(keys)}")
    with feast_lock():
        record = online_store.materialization_state(model)
        if problem := _staleness_problem(model, record):
            return MissingEvidence(problem)
        try:
            served = store.get_online_features(
                features=service, entity_rows=entities.to_pylist(), full_feature_names=True
            ).to_dict()
        except Exception as error:  # whatever the store in use raises
            return MissingEvidence(f"the online store cannot be read: {type(error).__name__}: {first_line(error)}")
    moment = _newest_event_timestamp(model, record)
    if moment is None:
        return MissingEvidence("no feature row was published in the days that the online store holds")
    instants = pa.array([moment] * entities.num_rows, pa.timestamp("us", "UTC"))
    numbers = pa.array(range(entities.num_rows), pa.int64())
    asked = entities.append_column("event_timestamp", instants).append_column(_ROW_COLUMN, numbers)
    offline = historical_features(model, asked).sort_by(_ROW_COLUMN)
    if problem := _staleness_problem(model, record):
        return MissingEvidence(problem)
    features = sorted(set(offline.column_names) - set(asked.column_names))
    return compare_feature_values(
        entities.to_pylist(), {name: offline[name].to_pylist() for name in features}, served, moment
    )


_ROW_COLUMN = "evergreen_row"


def _join_keys(model: ModelSpec) -> list[str]:
    """The columns by which the model's features are asked for."""
    store = open_feature_store()
    service = store.get_feature_service(model.feature_service)
    return sorted(
        {
            projection.join_key_map.get(column.name, column.name)
            for projection in service.feature_view_projections
            for column in store.get_feature_view(projection.name).entity_columns
            if column.name != "__dummy_id"
        }
    )


def _sample_entities(holdout: pa.Table, keys: list[str], sample_size: int, seed: str) -> pa.Table:
    """Different key sets of the last day; which ones depends on the holdout's content alone."""
    last = pc.max(holdout["day"])
    rows = holdout.filter(pc.equal(holdout["day"], last)).select(keys).drop_null()
    rows = rows.group_by(keys).aggregate([]).sort_by([(key, "ascending") for key in keys])
    if rows.num_rows <= sample_size:
        return rows
    chosen = np.random.default_rng(int(seed[:16], 16)).choice(rows.num_rows, sample_size, replace=False)
    return rows.take(np.sort(chosen))


def _staleness_problem(model: ModelSpec, materialization: Mapping[str, Any]) -> str | None:
    """Why the online store cannot be compared with what is published now; None if it can."""
    if not materialization:
        return f"nothing was materialized for {model.feature_model} yet"
    if not materialization["days"]:
        return "the online store was being written when that was ended: materialize again"
    published = {
        manifest.partition.removeprefix("day="): manifest.content_hash
        for manifest in features_dataset(model).manifests()
    }
    timezone = feature_spec(model).timezone
    until, first = datetime.fromisoformat(materialization["until"]), min(materialization["days"])
    now = {
        day: content
        for day, content in published.items()
        if day >= first and midnight(date.fromisoformat(day), timezone) < until
    }
    if changed := sorted(
        day for day in {*now, *materialization["days"]} if now.get(day) != materialization["days"].get(day)
    ):
        return (
            f"features of {', '.join(changed)} were published anew since the online store was written: "
            "materialize, then evaluate again"
        )
    return None


def _newest_event_timestamp(model: ModelSpec, materialization: Mapping[str, Any]) -> datetime | None:
    """The event timestamp of the newest feature row, of any of the service's views, before the record's `until`."""
    store, published = open_feature_store(), features_dataset(model)
    service = store.get_feature_service(model.feature_service)
    views = [store.get_feature_view(projection.name) for projection in service.feature_view_projections]
    sources = {(view.batch_source.name, view.batch_source.timestamp_field) for view in views if view.batch_source}
    until = pa.scalar(datetime.fromisoformat(materialization["until"]), pa.timestamp("us", "UTC"))
    for day in sorted(materialization["days"], reverse=True):
        manifest = published.manifest(datasets.day_partition(day))
        if manifest is None:
            continue
        newest = []
        for table, column in sorted(sources):
            if table not in manifest.files:
                continue
            rows = pq.read_table(published.file_path(manifest, table), columns=[column], partitioning=None)
            times = rows[column].cast(pa.timestamp("us", "UTC"))
            newest.append(pc.max(times.filter(pc.less(times, until))).as_py())
        if found := [instant for instant in newest if instant]:
            return max(found)
    return None
