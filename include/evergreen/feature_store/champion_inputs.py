"""The champion's own inputs for the rows of a holdout, after the spec's features have changed.

A feature that was removed, renamed or defined in another way since is joined as the champion learned it, for as long as
its table is published with that column. What can no longer be made is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import pyarrow as pa
from feast import Entity, FeatureView, Field
from feast.types import from_value_type
from feast.value_type import ValueType

from evergreen.errors import FaultsError, InputsChangedError, MissingInputsError
from evergreen.feature_store.model_inputs import ModelInputs, ViewDefinition, coarse_type
from evergreen.feature_store.repository import open_feature_store, table_source
from evergreen.feature_store.retrieval import restrict_partitions
from evergreen.feature_store.training_sets import join_views
from evergreen.lake import datasets
from evergreen.periods import Calendar
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec


def recreate_inputs(
    model: ModelSpec, training_set: datasets.Manifest, holdout: pa.Table, inputs: ModelInputs
) -> pa.Table:
    """Return the columns of `inputs` for each row of the training set's file `holdout`, in its order.

    Columns that have not changed are taken from it.

    Raises:
        MissingInputsError: columns can no longer be made; all are named, with the reason.
        InputsChangedError: features were published since the training set was made.
    """
    changed = inputs.changed_columns(training_set)
    views: dict[str, list[str]] = {}
    for column in changed:
        if feature := inputs.find_feature(column):
            views.setdefault(feature[0], []).append(feature[1])
    calendar = feature_spec(model).calendar
    published = _published_periods(training_set, inputs.feature_model, calendar)
    problems = _request_problems(inputs, changed, holdout)
    for name, features in views.items():
        problems += _view_problems(name, features, inputs, holdout, training_set, published, calendar)
    if problems:
        raise MissingInputsError("; ".join(problems))
    table = holdout
    if views:
        try:
            definitions = [view_as_learned(name, inputs, features) for name, features in views.items()]
        except KeyError as error:
            raise MissingInputsError(f"{error} is no type of Feast: the version's inputs are damaged") from None
        keys = {column for view in definitions for column in _key_columns(inputs.views[view.name]).values()}
        entities = holdout.select(["event_timestamp", *sorted(keys)])
        references = [f"{name}:{feature}" for name, features in views.items() for feature in features]
        try:
            store = open_feature_store(model.feature_model)
            with restrict_partitions(_earlier_partitions(training_set, inputs.feature_model)):
                joined = join_views(store, definitions, references, entities)
        except FaultsError as error:  # what the columns of a table do not show, such as types that differ by period
            problem = "; ".join(map(str, error.faults))
            raise MissingInputsError(f"{', '.join(changed)} cannot be joined: {problem}") from None
        for column in changed:
            if column in table.column_names:
                table = table.drop_columns([column])
            table = table.append_column(column, joined[column])
        if _published_periods(training_set, inputs.feature_model, calendar) != published:
            raise InputsChangedError("features were republished while the champion's were read; clear this task")
    return table.select(list(inputs.column_names))


def _published_periods(
    training_set: datasets.Manifest, feature_model: str, calendar: Calendar
) -> Mapping[str, datasets.Manifest]:
    """Return what is published of the periods of the training set, by partition."""
    start, end = (training_set.inputs[name] for name in ("start", "as_of"))
    dataset = datasets.open_dataset(f"features/{feature_model}")
    manifests = map(dataset.manifest, map(datasets.period_partition, calendar.periods_between(start, end)))
    published = {manifest.partition: manifest for manifest in manifests if manifest}
    if feature_model == training_set.inputs["feature_model"]:
        contents = {partition: manifest.content_hash for partition, manifest in published.items()}
        if contents != training_set.inputs["features"]:
            raise InputsChangedError(
                "features were republished since the training set was made; clear this run from its training_set task"
            )
    return published


def _earlier_partitions(training_set: datasets.Manifest, feature_model: str) -> list[str]:
    """Return what is published of the periods before the training set's `as_of`."""
    partitions = datasets.open_dataset(f"features/{feature_model}").partitions()
    as_of = training_set.inputs["as_of"]
    return [partition for partition in partitions if datasets.partition_period(partition) < as_of]


def _request_problems(inputs: ModelInputs, changed: Sequence[str], holdout: pa.Table) -> list[str]:
    """Return what has become of columns that came with the request; none of them can be made."""
    problems, types = [], dict(inputs.columns)
    for column in changed:
        if inputs.find_feature(column):
            continue
        if column not in holdout.column_names:
            problems.append(f"{column} is no column of the examples any more")
        else:
            problems.append(f"{column} was {types[column]} and is {holdout.schema.field(column).type}")
    return problems


def _view_problems(
    name: str,
    features: Sequence[str],
    inputs: ModelInputs,
    holdout: pa.Table,
    training_set: datasets.Manifest,
    published: Mapping[str, datasets.Manifest],
    calendar: Calendar,
) -> list[str]:
    """Return why features of a view cannot be made for all rows of the holdout."""
    definition, types = inputs.views[name], dict(inputs.columns)
    if lost := [column for column in _key_columns(definition).values() if column not in holdout.column_names]:
        return [f"{name} is joined by {', '.join(lost)}, no column of the examples any more"]
    if not holdout.num_rows:
        return []
    # Rows of earlier periods are in reach, too; a view without a TTL is only read where the holdout is.
    days, bounds = holdout["day"].to_pylist(), training_set.inputs
    first = max(calendar.first_of(min(days)), bounds["holdout"])
    first = calendar.period_at(calendar.start(first) - timedelta(seconds=definition.ttl_seconds))
    end = min(calendar.first_of(max(days) + timedelta(1)), bounds["holdout_end"])
    problems: dict[str, str] = {}
    for period in calendar.periods_between(max(first, bounds["start"]), end):
        manifest = published.get(datasets.period_partition(period))
        if manifest is None:
            return [f"{inputs.feature_model} has no published features of {period}, which {name} needs"]
        file = manifest.files.get(definition.table)
        schema = (file.schema or {}) if file else {}
        for feature in features:
            column = f"{name}__{feature}"
            if feature not in schema:
                problems.setdefault(column, f"{column} is not in {definition.table} of {period}")
            elif coarse_type(schema[feature]) != coarse_type(types[column]):
                text = f"{column} was {types[column]} and is {schema[feature]} in {definition.table} of {period}"
                problems.setdefault(column, text)
    return list(problems.values())


def _key_columns(definition: ViewDefinition) -> dict[str, str]:
    return {key: definition.key_columns.get(key, key) for key in definition.keys}


def view_as_learned(
    name: str, inputs: ModelInputs, features: Sequence[str], other_columns: Mapping[str, str] | None = None
) -> FeatureView:
    """Return the view as the model learned it, also with other columns of its table; it is not in Feast's registry.

    `other_columns` has their types of Feast.
    """
    definition = inputs.views[name]
    types = {**definition.keys, **{feature: definition.features[feature] for feature in features}}
    types |= other_columns or {}
    keys = [Entity(name=key, join_keys=[key], value_type=ValueType[type_]) for key, type_ in definition.keys.items()]
    view = FeatureView(
        name=name,
        entities=keys or None,
        ttl=timedelta(seconds=definition.ttl_seconds),
        schema=[Field(name=column, dtype=from_value_type(ValueType[type_])) for column, type_ in types.items()],
        source=table_source(
            inputs.feature_model,
            definition.table,
            definition.served_after.to_tags() if definition.served_after else None,
        ),
    )
    view.projection.join_key_map = dict(definition.key_columns)
    return view
