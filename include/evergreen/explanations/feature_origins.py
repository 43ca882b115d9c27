"""The values that the features of one request had at a time, and the published rows that they came from.

Values come from the point-in-time join of training sets, of the views as the model learned them. The join also returns
the event timestamp of the row that it chose, as one more feature: by that the row is found in the published files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from evergreen.errors import Fault, RawDataError, RequestError
from evergreen.feature_store.champion_inputs import view_as_learned
from evergreen.feature_store.model_inputs import ModelInputs, ViewDefinition
from evergreen.feature_store.repository import open_feature_store
from evergreen.feature_store.retrieval import restrict_partitions
from evergreen.feature_store.training_sets import join_views
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset
from evergreen.periods import Calendar

_TIME = "event_timestamp"
_ORIGIN_TYPE = "UNIX_TIMESTAMP"


@dataclass(frozen=True)
class FeatureOrigin:
    """The published row that the features of a view came from.

    Attributes:
        period: of the partition; empty if the view has no row that holds at that time.
        event_timestamp: of the row.
        problem: why there is no row, and when there is one; empty if there is.
    """

    period: str = ""
    event_timestamp: datetime | None = None
    problem: str = ""


def newest_instant(inputs: ModelInputs) -> datetime:
    """Return from when on the newest row of the model's views counts, in the newest period with rows.

    That is its event timestamp, or when it is served if its view declares that. Without views, that is now.

    Raises:
        RawDataError: no features are published.
    """
    if not inputs.views:
        return datetime.now(UTC)
    dataset = _features_dataset(inputs)
    for partition in reversed(dataset.partitions()):
        period = datasets.partition_period(partition)
        instants = [
            definition.served_after.known_at(period, max(instants)) if definition.served_after else max(instants)
            for definition in inputs.views.values()
            for _, instants in _read_instants(dataset, [partition], definition, {})
        ]
        if instants:
            return max(instants)
    fault = Fault(f"features/{inputs.feature_model}", "nothing is published", f"run {inputs.feature_model}.features")
    raise RawDataError("features", [fault])


def join_at(
    inputs: ModelInputs, calendar: Calendar, keys: pa.Table, instant: datetime
) -> tuple[dict[str, pa.ChunkedArray], dict[str, FeatureOrigin]]:
    """Return the features of the model for one row of keys as of an instant, and where those of each view came from.

    Rows of periods that begin later are not seen, as in a training set that ends with the period of the instant.

    Raises:
        RequestError: no view with keys has a row for them that holds at that time.
    """
    if not inputs.views:
        return {}, {}
    dataset, period = _features_dataset(inputs), calendar.period_at(instant)
    partitions = [name for name in dataset.partitions() if datasets.partition_period(name) <= period]
    features: dict[str, list[str]] = {name: [] for name in inputs.views}
    for column in inputs.column_names:
        if feature := inputs.find_feature(column):
            features[feature[0]].append(feature[1])
    views = [view_as_learned(name, inputs, names, {_TIME: _ORIGIN_TYPE}) for name, names in features.items()]
    references = [f"{name}:{feature}" for name, names in features.items() for feature in (*names, _TIME)]
    columns = {name: keys[name] for name in keys.column_names}
    entities = pa.table({**columns, _TIME: pa.array([instant], pa.timestamp("us", "UTC"))})
    with restrict_partitions(partitions):
        joined = join_views(open_feature_store(inputs.feature_model), views, references, entities)
    row, origins = keys.to_pylist()[0] if keys.num_columns else {}, {}
    for name, definition in inputs.views.items():
        view_keys = {key: row[definition.key_columns.get(key, key)] for key in definition.keys}
        row_time = joined[f"{name}__{_TIME}"].to_pylist()[0]
        if row_time is None:
            origins[name] = _missing_row(dataset, partitions, definition, view_keys, instant)
        else:
            row_time = row_time if row_time.tzinfo else row_time.replace(tzinfo=UTC)
            origins[name] = _find_row(dataset, partitions, definition, view_keys, row_time)
    keyed = {name: origins[name] for name, definition in inputs.views.items() if definition.keys}
    if keyed and all(origin.problem for origin in keyed.values()):
        faults = [Fault(name, origin.problem) for name, origin in keyed.items()]
        described = ", ".join(f"{name}={value}" for name, value in row.items())
        raise RequestError(f"features of {described} as of {instant.isoformat()}", faults)
    return {
        f"{name}__{feature}": joined[f"{name}__{feature}"] for name in features for feature in features[name]
    }, origins


def _features_dataset(inputs: ModelInputs) -> Dataset:
    return datasets.open_dataset(f"features/{inputs.feature_model}")


def _find_row(
    dataset: Dataset, partitions: Sequence[str], definition: ViewDefinition, keys: Mapping[str, Any], instant: datetime
) -> FeatureOrigin:
    """Return the row of this instant: that of the newest partition, as of equal ones the last in the files counts."""
    for partition, instants in _read_instants(dataset, reversed(partitions), definition, keys):
        if instant in instants:
            return FeatureOrigin(datasets.partition_period(partition), instant)
    return FeatureOrigin("", instant)  # it was republished since


def _missing_row(
    dataset: Dataset, partitions: Sequence[str], definition: ViewDefinition, keys: Mapping[str, Any], instant: datetime
) -> FeatureOrigin:
    """Say when there is a row for the keys, if there is none at an instant."""
    described = " and ".join(f"{name}={value}" for name, value in keys.items()) or "anything"
    served = f", and is served {definition.served_after.delay} after that is over" if definition.served_after else ""
    for partition, instants in _read_instants(dataset, reversed(partitions), definition, keys):
        if earlier := [time for time in instants if time <= instant]:
            ttl = timedelta(seconds=definition.ttl_seconds)
            period = datasets.partition_period(partition)
            return FeatureOrigin(
                problem=f"has no row for {described} that holds then: the last one is of {max(earlier).isoformat()}, "
                f"in {period}, and holds for {ttl}{served}"
            )
    for partition, instants in _read_instants(dataset, dataset.partitions(), definition, keys):
        if later := [time for time in instants if time > instant]:
            period = datasets.partition_period(partition)
            return FeatureOrigin(
                problem=f"has no row for {described} yet: the first one is of {min(later).isoformat()}, in {period}"
            )
    return FeatureOrigin(problem=f"has no row for {described} at any time")


def _read_instants(
    dataset: Dataset, partitions: Iterator[str] | Sequence[str], definition: ViewDefinition, keys: Mapping[str, Any]
) -> Iterator[tuple[str, list[datetime]]]:
    """Yield the event timestamps of the rows with these keys, by partition; of one without rows nothing."""
    for partition in partitions:
        manifest = dataset.manifest(partition)
        if manifest is None or definition.table not in manifest.files:
            continue
        file = dataset.file_path(manifest, definition.table)
        schema = pq.read_schema(file)
        if missing := [name for name in (*keys, _TIME) if name not in schema.names]:
            raise RequestError(f"{file}", [Fault(", ".join(missing), "is no column of the features")])
        condition = None
        for name, value in keys.items():
            equal = pads.field(name) == pa.scalar(value)
            condition = equal if condition is None else condition & equal
        table = pads.dataset(file, format="parquet").to_table(columns=[_TIME], filter=condition)
        instants = table[_TIME].cast(pa.timestamp("us"), safe=False).drop_null().to_pylist()
        if instants:
            yield partition, [instant.replace(tzinfo=UTC) for instant in instants]
