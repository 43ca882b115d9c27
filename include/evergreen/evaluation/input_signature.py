"""The inputs of a model: as it learned them, and as serving provides them today."""

from __future__ import annotations

import pyarrow as pa

from evergreen.errors import ScoringError
from evergreen.features.inputs import features_dataset
from evergreen.gates.evidence import ColumnTypes, InputSignature, MissingEvidence
from evergreen.lake import datasets
from evergreen.scoring import predictions
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec


def collect_input_signature(
    model: ModelSpec,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    columns: ColumnTypes | MissingEvidence,
) -> InputSignature | MissingEvidence:
    """Pair the candidate's input columns, typed as in its training set, with the `columns` of serving.

    Types are those of `coarse_type`.
    """
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

    from evergreen.feature_store.repository import open_feature_store

    published = features_dataset(model).manifests()
    if not published:
        return MissingEvidence(f"{model.feature_model} has no published features: the types of a request are not known")
    spine = feature_spec(model).spine
    schema = published[-1].files[spine].schema or {}
    if unknown := [name for name in model.request_columns if name not in schema]:
        text = f"{', '.join(unknown)} of request_columns is no column of {spine}"
        return MissingEvidence(f"{text}, as published for {published[-1].partition}")
    service = open_feature_store(model.feature_model).get_feature_service(model.feature_service)
    features = [
        (f"{view.name_to_use()}__{feature.name}", str(feast_value_type_to_pa(feature.dtype.to_value_type())))
        for view in service.feature_view_projections
        for feature in view.features
    ]
    request = [(name, schema[name]) for name in model.request_columns]
    return tuple((name, coarse_type(type_)) for name, type_ in (*request, *features))


def coarse_type(arrow_type: str) -> str:
    """Return `number`, `boolean`, `text`, `time`, or the type itself, for the name of an Arrow type.

    All numbers are one type: a column of integers becomes floating when one of its values is missing, and models take
    every number as floating.
    """
    if arrow_type.startswith(("int", "uint", "float", "halffloat", "double", "decimal")):
        return "number"
    if arrow_type.startswith(("timestamp", "date")):
        return "time"
    return {"bool": "boolean", str(pa.string()): "text", str(pa.large_string()): "text"}.get(arrow_type, arrow_type)
