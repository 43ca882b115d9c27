"""Explains one prediction: its inputs, where their values came from, and what each adds to the prediction.

Contributions of trees are SHAP values, which add up to the raw score. Of any other model, a contribution is by how much
the prediction changes if one input alone had its usual value: these do not add up where inputs act together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evergreen import ledger
from evergreen.errors import Fault, RegistryError, RequestError, ScoringError
from evergreen.explanations.feature_origins import FeatureOrigin, join_at, newest_instant
from evergreen.explanations.request import PredictionRequest, parse_request
from evergreen.explanations.verdict_importance import choose_rows, read_rows
from evergreen.feature_store import online_store, training_sets
from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.feature_store.online_features import ask_online_store
from evergreen.feature_store.repository import open_feature_store
from evergreen.gates.metrics import FloatArray
from evergreen.lake import datasets
from evergreen.ledger import LedgerState
from evergreen.registry import versions
from evergreen.scoring.predictions import TableScorer
from evergreen.scoring.predictors.base import is_numeric
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

Alias = Literal["champion", "challenger", "candidate", "previous"]
_REFERENCE_ROWS = 10_000
_SEED = 0


@dataclass(frozen=True)
class ExplainedInput:
    """One input of a prediction.

    Attributes:
        value: None is missing.
        source: `request`, the name of the view, or `online store`.
        origin: of a feature: the published row; of the online store, only its instant, if that is known.
        contributions: one for each output of the model; empty if there are none.
        reference: of a contribution that is a difference, the usual value.
    """

    name: str
    value: Any
    source: str
    origin: FeatureOrigin | None = None
    contributions: tuple[float, ...] = ()
    reference: Any = None


@dataclass(frozen=True)
class ExplainedPrediction:
    """A prediction of one version for one request.

    Attributes:
        role: the alias that was asked for; empty for a version by its number.
        as_of: the instant that features are of.
        kind: of the model, as it was when it learned; None for a single number.
        predictions: by output; of a single number, with the name `prediction`.
        method: `shap`, `difference`, or `none`.
        base: of each output: the mean raw score (`shap`).
        scores: of each output: what contributions and base add up to (`shap`).
        notes: what a reader has to know besides.
    """

    model: str
    version: str
    role: str
    as_of: datetime
    is_online: bool
    kind: str | None
    predictions: Mapping[str, float]
    inputs: tuple[ExplainedInput, ...]
    method: Literal["shap", "difference", "none"]
    base: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def explain_prediction(
    model: ModelSpec,
    values: Mapping[str, str],
    *,
    alias: Alias = "champion",
    version: str | None = None,
    as_of: datetime | None = None,
    online: bool = False,
) -> ExplainedPrediction:
    """Explain the prediction for a request: `values` has the keys of features and the columns of the request, as text.

    Features are as of an instant, by default that of the newest published row; or with `online` what the online store
    has now. The version's files are verified.

    Raises:
        RegistryError: there is no such version, or it is not registered any more.
        RequestError: the request lacks something, or no features are known for its keys at that time.
        RawDataError: no features are published.
        ScoringError, SignatureError: the version cannot be loaded, or cannot score the row.
    """
    number, content = _find_version(model.name, alias, version)
    with versions.open_model(model.name, content) as (folder, _):
        inputs = versions.read_model_inputs(folder)
        request = parse_request(f"request to {model.name} version {number}", inputs, values)
        if online:
            as_of, row, sources = _read_online(model, inputs, request)
        else:
            as_of = as_of or newest_instant(inputs)
            row, sources = _read_offline(model, inputs, request, as_of)
        return _explain_row(
            model, number, content, "" if version else alias, folder, inputs, row, sources, as_of, online
        )


def _find_version(model: str, alias: Alias, version: str | None) -> tuple[str, str]:
    """Return the version and its content by the ledger; of the alias `candidate`, by MLflow."""
    state = ledger.read_state(model)
    if version is None and alias == "candidate":
        version = versions.find_candidate_version(model)
    versions_known = ", ".join(dict.fromkeys(item.version for item in state.registrations)) or "none"
    if version is not None:
        registration = state.find_version(version)
        if registration is None:
            raise RegistryError(f"{model} has no version {version[:80]!a}: the ledger knows {versions_known}")
        return version, registration.content
    content = _content_of(state, alias)
    if content is None:
        raise RegistryError(f"{model} has no {alias}: name a version with --version; the ledger knows {versions_known}")
    return state.name_of(content, content[:12]), content


def _content_of(state: LedgerState, alias: Alias) -> str | None:
    if alias == "previous":
        return state.previous_tenure.content if state.previous_tenure else None
    return {"champion": state.champion_content, "challenger": state.challenger_content}.get(alias)


_Sources = Mapping[str, tuple[str, FeatureOrigin | None]]
"""By column: where its value came from."""


def _read_offline(
    model: ModelSpec, inputs: ModelInputs, request: PredictionRequest, as_of: datetime
) -> tuple[pa.Table, _Sources]:
    features, origins = join_at(inputs, feature_spec(model).calendar, request.keys, as_of)
    columns: dict[str, pa.ChunkedArray] = {}
    sources: dict[str, tuple[str, FeatureOrigin | None]] = {}
    for name in inputs.column_names:
        if feature := inputs.find_feature(name):
            columns[name], sources[name] = features[name], (feature[0], origins[feature[0]])
        else:
            columns[name], sources[name] = request.columns[name], ("request", None)
    return pa.table(columns), sources


def _read_online(
    model: ModelSpec, inputs: ModelInputs, request: PredictionRequest
) -> tuple[datetime, pa.Table, _Sources]:
    state = online_store.materialization_state(model)
    if not state:
        fix = f"run {model.name}.retrain, whose task materialize fills it, or leave --online out"
        raise RequestError("online store", [Fault(model.feature_model, "nothing was written to it yet", fix)])
    store = open_feature_store(model.feature_model)
    service = store.get_feature_service(model.feature_service)
    response = ask_online_store(store, service, request.keys.to_pylist() or [{}])
    features = response.to_dict(include_event_timestamps=True)
    columns: dict[str, Any] = {}
    sources: dict[str, tuple[str, FeatureOrigin | None]] = {}
    faults = []
    for name in inputs.column_names:
        if inputs.find_feature(name) is None:
            columns[name], sources[name] = request.columns[name], ("request", None)
        elif name not in features:
            problem = f"is no feature of {model.feature_service} any more, and the version has learned from it"
            faults.append(Fault(name, problem, "leave --online out"))
        else:
            columns[name] = pa.array(features[name])
            seconds = features.get(f"{name}__ts", [0])[0]
            instant = datetime.fromtimestamp(seconds, UTC) if seconds else None
            period = feature_spec(model).calendar.period_at(instant) if instant else ""
            sources[name] = ("online store", FeatureOrigin(period, instant, "" if instant else "has no value online"))
    if faults:
        raise RequestError("online store", faults)
    return datetime.fromisoformat(state["watermark"]), pa.table(columns), sources


def _explain_row(
    model: ModelSpec,
    version: str,
    content: str,
    role: str,
    folder: Path,
    inputs: ModelInputs,
    row: pa.Table,
    sources: _Sources,
    as_of: datetime,
    is_online: bool,
) -> ExplainedPrediction:
    names, prediction = inputs.column_names, inputs.prediction
    scorer = TableScorer(folder, names, names, prediction)
    scores = np.atleast_1d(scorer.score(row)[0])
    outputs = prediction.outputs if prediction and prediction.outputs else ("prediction",)
    notes = [
        f"{view} {origin.problem}: its features are missing"
        for view, origin in dict.fromkeys((view, origin) for view, origin in sources.values() if origin)
        if origin.problem
    ]
    parts = np.empty((0, len(names)))
    references: list[Any] = [None] * len(names)
    method: Literal["shap", "difference", "none"] = "none"
    base: Sequence[float] = ()
    raw: Sequence[float] = ()
    try:
        if contributions := scorer.predictor.contributions(row):
            method, parts = "shap", contributions.values[0]
            base, raw = contributions.base[0].tolist(), contributions.score[0].tolist()
            if scorer.predictor.target_transform:
                notes.append(f"contributions are to the {scorer.predictor.target_transform} of the prediction")
        else:
            usual = _usual_values(model, content, names)
            parts, method = _differences(scorer, row, usual, scores), "difference"
            references = [usual[name].to_pylist()[0] for name in names]
    except ScoringError as error:
        notes.append(f"there are no contributions: {error}")
    explained = tuple(
        ExplainedInput(
            name, row[name].to_pylist()[0], *sources[name], tuple(parts[:, place].tolist()), references[place]
        )
        for place, name in enumerate(names)
    )
    return ExplainedPrediction(
        model=model.name,
        version=version,
        role=role,
        as_of=as_of,
        is_online=is_online,
        kind=prediction.kind if prediction else None,
        predictions=dict(zip(outputs, scores.tolist(), strict=True)),
        inputs=explained,
        method=method,
        base=tuple(base),
        scores=tuple(raw),
        notes=tuple(notes),
    )


def _differences(scorer: TableScorer, row: pa.Table, usual: pa.Table, scores: FloatArray) -> FloatArray:
    """Return by how much the prediction is higher than it would be with the usual value of one input, (outputs, n)."""
    rows = []
    for place, name in enumerate(row.column_names):
        column = usual[name].cast(row[name].type) if row[name].type != pa.null() else usual[name]
        rows.append(row.set_column(place, name, column))
    replaced = [np.atleast_1d(scorer.score(changed)[0]) for changed in rows]
    return np.stack([scores - score for score in replaced], axis=1)


def _usual_values(model: ModelSpec, content: str, names: Sequence[str]) -> pa.Table:
    """Return one row: of numbers their median, of others their most frequent value, in what the version learned from.

    Raises:
        ScoringError: its training set is gone.
    """
    state = ledger.read_state(model.name)
    registration = state.find_registration(content)
    event = registration and state.find_verdict_event(registration.verdict_entry)
    assert event, "open_model has verified it"
    source = training_sets.training_set_dataset(model)
    training_set = source.manifest(f"as_of={datasets.file_name_of_period(event.as_of)}")
    if training_set is None or training_set.content_hash != event.fingerprints["training_set"]:
        raise ScoringError("what it has learned from is not in the lake any more, so nobody knows usual values")
    file = source.file_path(training_set, "train")
    table = read_rows(file, choose_rows(file, _REFERENCE_ROWS, _SEED), names)
    return pa.table({name: _usual_value(table[name]) for name in names})


def _usual_value(column: pa.ChunkedArray) -> pa.Array:
    values = column.drop_null()
    if is_numeric(column.type) and not pa.types.is_boolean(column.type):
        ordered = values.take(pc.sort_indices(values)) if len(values) else values
        usual = ordered[(len(ordered) - 1) // 2].as_py() if len(ordered) else None
    else:
        counts = sorted(pc.value_counts(values).to_pylist(), key=lambda item: (-item["counts"], str(item["values"])))
        usual = counts[0]["values"] if counts else None
    return pa.array([usual], column.type)
