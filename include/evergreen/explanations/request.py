"""A request for one prediction, as a person types it: keys of features, and columns that come with the request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from feast.type_map import feast_value_type_to_pa
from feast.value_type import ValueType

from evergreen.errors import Fault, RequestError, first_line
from evergreen.feature_store.model_inputs import ModelInputs


@dataclass(frozen=True)
class PredictionRequest:
    """The values of a request, by column: what features are joined by, and what the model takes as it is."""

    keys: pa.Table
    columns: pa.Table


def parse_request(subject: str, inputs: ModelInputs, values: Mapping[str, str]) -> PredictionRequest:
    """Return one row of keys, and one of request columns, in the types of the features and of the model.

    The text of a request column may be empty: the value is missing.

    Raises:
        RequestError: keys or columns are missing, unknown, or not of their type; all are named.
    """
    keys = _key_types(inputs)
    columns = {name: _arrow_type(type_) for name, type_ in inputs.columns if inputs.find_feature(name) is None}
    types = {**columns, **keys}
    faults = [
        Fault(name[:80], "is neither a key nor a column of the request", f"the model takes {', '.join(types)}")
        for name in values
        if name not in types
    ]
    for name, type_ in types.items():
        if name not in values:
            role = "a key of its features" if name in keys else "a column of the request"
            faults.append(Fault(name, f"is missing, {role}", f"add {name}=…, {type_}"))
    parsed: dict[str, pa.Array] = {}
    for name, type_ in types.items():
        if name not in values:
            continue
        if name in keys and not values[name]:
            faults.append(Fault(name, "is empty, a key of its features", f"write {name}=…, {type_}"))
            continue
        try:
            parsed[name] = pa.array([values[name] or None], pa.string()).cast(type_)
        except pa.ArrowException as error:
            faults.append(Fault(name, f"{values[name][:80]!r} is no {type_}", first_line(error)))
    if faults:
        raise RequestError(subject, faults)
    return PredictionRequest(
        pa.table({name: parsed[name] for name in keys}), pa.table({name: parsed[name] for name in columns})
    )


def _key_types(inputs: ModelInputs) -> dict[str, pa.DataType]:
    """Return the column of a request for each join key of the model's features, with its type."""
    types: dict[str, pa.DataType] = {}
    for definition in inputs.views.values():
        for key, type_ in definition.keys.items():
            types[definition.key_columns.get(key, key)] = feast_value_type_to_pa(ValueType[type_])
    return types


def _arrow_type(name: str) -> pa.DataType:
    """Return the type of a request column by its name; those of models are numbers, booleans and text."""
    if name == "null":  # it had no value in the training set
        return pa.float64()
    try:
        return pa.type_for_alias(name)
    except ValueError:
        return pa.string()
