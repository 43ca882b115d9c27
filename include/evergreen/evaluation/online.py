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

from evergreen.evaluation.difference import compare
from evergreen.feature_store import online_store
from evergreen.feature_store.repository import feature_store, locked
from evergreen.feature_store.training_sets import features_at
from evergreen.features.inputs import dataset as features_dataset
from evergreen.gates.evidence import Missing, OnlineSample
from evergreen.lake import datasets
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import Model
from evergreen.window import midnight


def sample(
    model: Model, training_set: datasets.Manifest, table: pa.Table, size: int
) -> OnlineSample | Missing:
    """Compare all features of up to `size` entities of the last day of `table`, the holdout.

    An entity is a set of values of all join keys; rows that lack one of them are left out.

    The online store is read while nobody writes it: this waits for a materialization to end.
    """
    store = feature_store()
    service = store.get_feature_service(model.feature_service)
    keys = _keys(model)
    if absent := [key for key in keys if key not in table.column_names]:
        return Missing(f"the holdout lacks {', '.join(absent)}, by which the online store is asked")
    entities = _sampled(table, keys, size, training_set.files["holdout"].sha256)
    if not entities.num_rows:
        return Missing(f"no row of the holdout's last day has a value for all of {', '.join(keys)}")
    with locked():
        record = online_store.record(model)
        if problem := _behind(model, record):
            return Missing(problem)
        try:
            served = store.get_online_features(
                features=service, entity_rows=entities.to_pylist(), full_feature_names=True
            ).to_dict()
        except Exception as error:  # whatever the store in use raises
            first = (str(error).splitlines() or [""])[0]
            return Missing(f"the online store cannot be read: {type(error).__name__}: {first}")
    moment = _newest_row(model, record)
    if moment is None:
        return Missing("no feature row was published in the days that the online store holds")
    instants = pa.array([moment] * entities.num_rows, pa.timestamp("us", "UTC"))
    numbers = pa.array(range(entities.num_rows), pa.int64())
    asked = entities.append_column("event_timestamp", instants).append_column(_ROW, numbers)
    offline = features_at(model, asked).sort_by(_ROW)
    if problem := _behind(model, record):
        return Missing(problem)
    features = sorted(set(offline.column_names) - set(asked.column_names))
    return compare(
        entities.to_pylist(), {name: offline[name].to_pylist() for name in features}, served, moment
    )


_ROW = "evergreen_row"


def _keys(model: Model) -> list[str]:
    """The columns by which the model's features are asked for."""
    store = feature_store()
    service = store.get_feature_service(model.feature_service)
    return sorted(
        {
            projection.join_key_map.get(column.name, column.name)
            for projection in service.feature_view_projections
            for column in store.get_feature_view(projection.name).entity_columns
            if column.name != "__dummy_id"
        }
    )


def _sampled(table: pa.Table, keys: list[str], size: int, seed: str) -> pa.Table:
    """Different key sets of the last day; which ones depends on the holdout's content alone."""
    last = pc.max(table["day"])
    rows = table.filter(pc.equal(table["day"], last)).select(keys).drop_null()
    rows = rows.group_by(keys).aggregate([]).sort_by([(key, "ascending") for key in keys])
    if rows.num_rows <= size:
        return rows
    chosen = np.random.default_rng(int(seed[:16], 16)).choice(rows.num_rows, size, replace=False)
    return rows.take(np.sort(chosen))


def _behind(model: Model, record: Mapping[str, Any]) -> str | None:
    """Why the online store cannot be compared with what is published now; None if it can."""
    if not record:
        return f"nothing was materialized for {model.features_of} yet"
    if not record["days"]:
        return "the online store was being written when that was ended: materialize again"
    published = {
        manifest.partition.removeprefix("day="): manifest.content
        for manifest in features_dataset(model).manifests()
    }
    timezone = feature_spec(model).timezone
    until, first = datetime.fromisoformat(record["until"]), min(record["days"])
    now = {
        day: content
        for day, content in published.items()
        if day >= first and midnight(date.fromisoformat(day), timezone) < until
    }
    if changed := sorted(day for day in {*now, *record["days"]} if now.get(day) != record["days"].get(day)):
        return (
            f"features of {', '.join(changed)} were published anew since the online store was written: "
            "materialize, then evaluate again"
        )
    return None


def _newest_row(model: Model, record: Mapping[str, Any]) -> datetime | None:
    """The event timestamp of the newest feature row, of any of the service's views, before the record's `until`."""
    store, published = feature_store(), features_dataset(model)
    service = store.get_feature_service(model.feature_service)
    views = [store.get_feature_view(projection.name) for projection in service.feature_view_projections]
    sources = {
        (view.batch_source.name, view.batch_source.timestamp_field) for view in views if view.batch_source
    }
    until = pa.scalar(datetime.fromisoformat(record["until"]), pa.timestamp("us", "UTC"))
    for day in sorted(record["days"], reverse=True):
        manifest = published.manifest(datasets.day_partition(day))
        if manifest is None:
            continue
        newest = []
        for table, column in sorted(sources):
            if table not in manifest.files:
                continue
            rows = pq.read_table(published.path(manifest, table), columns=[column], partitioning=None)
            times = rows[column].cast(pa.timestamp("us", "UTC"))
            newest.append(pc.max(times.filter(pc.less(times, until))).as_py())
        if found := [instant for instant in newest if instant]:
            return max(found)
    return None
