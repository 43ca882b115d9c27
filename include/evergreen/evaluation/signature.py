"""The model's inputs, as it learned them, beside what serving will give it today."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from evergreen.errors import ScoringError
from evergreen.features.inputs import features_dataset as features_dataset
from evergreen.gates.evidence import InputSignature, MissingEvidence
from evergreen.lake import datasets
from evergreen.scoring import predictions
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

Columns = tuple[tuple[str, str], ...]


def collect_input_signature(
    model: ModelSpec,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    columns: Columns | MissingEvidence,
) -> InputSignature | MissingEvidence:
    """The columns of the candidate, with the types they had when it learned them, and those of `serving`.

    Types are as coarse as what a model can tell apart: see `type_of`.
    """
    if isinstance(columns, MissingEvidence):
        return columns
    names = tuple(candidate.inputs["features"])
    try:
        with predictions.candidate_folder(model, candidate) as folder:
            predictions.load_model(folder).check_columns(names)
    except ScoringError as error:
        return MissingEvidence(f"the candidate cannot be asked: {error}")
    learned = training_set.files["train"].schema or {}
    return InputSignature(tuple((name, coarse_type(learned.get(name, "none"))) for name in names), columns)


def serving_columns(model: ModelSpec) -> Columns | MissingEvidence:
    """What serving gives, in order: the request's columns as the newest spine has them, then the service's features."""
    from feast.type_map import feast_value_type_to_pa

    from evergreen.feature_store.repository import open_feature_store

    published = features_dataset(model).manifests()
    if not published:
        return MissingEvidence(f"{model.feature_model} has no published features: what a request holds is not known")
    spine: Mapping[str, str] = published[-1].files[feature_spec(model).spine].schema or {}
    if unknown := [name for name in model.request_columns if name not in spine]:
        return MissingEvidence(
            f"{', '.join(unknown)} of request_columns is no column of {feature_spec(model).spine}, "
            f"as published for {published[-1].partition}"
        )
    service = open_feature_store().get_feature_service(model.feature_service)
    features = tuple(
        (
            f"{view.name_to_use()}__{feature.name}",
            coarse_type(str(feast_value_type_to_pa(feature.dtype.to_value_type()))),
        )
        for view in service.feature_view_projections
        for feature in view.features
    )
    return (*((name, coarse_type(spine[name])) for name in model.request_columns), *features)


def coarse_type(arrow_type: str) -> str:
    """`number`, `boolean`, `text`, `time`, or the type itself, of a type as Arrow writes it.

    All numbers are one: a column of integers becomes floating when one of its values is missing, and models take
    every number as floating.
    """
    if arrow_type.startswith(("int", "uint", "float", "halffloat", "double", "decimal")):
        return "number"
    if arrow_type.startswith(("timestamp", "date")):
        return "time"
    return {"bool": "boolean", str(pa.string()): "text", str(pa.large_string()): "text"}.get(arrow_type, arrow_type)
