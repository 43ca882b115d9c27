"""Pairs the columns that a model learned from with those that serving provides."""

from __future__ import annotations

from evergreen.errors import ScoringError
from evergreen.feature_store.model_inputs import coarse_type
from evergreen.feature_store.repository import open_feature_store
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


def serving_columns(model: ModelSpec, training_set: datasets.Manifest) -> ColumnTypes | MissingEvidence:
    """Return what serving provides, in order: request columns, typed as in the newest spine, then features.

    The newest spine of the training set's window: what is published for later periods is of a later run, which may
    have other columns.
    """
    from feast.type_map import feast_value_type_to_pa

    partition = max(training_set.inputs["features"])  # a training set without features is not built
    newest = features_dataset(model).manifest(partition)
    if newest is None:
        text = f"features of {partition} are no longer published"
        return MissingEvidence(f"{model.feature_model}: {text}: the types of a request are not known")
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
