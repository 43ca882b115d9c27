"""Collects the evidence about one candidate, publishes it as one partition, and reads it back."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from evergreen import storage
from evergreen.errors import ChangedPredictionError, MissingInputsError, RegistryError, ScoringError
from evergreen.evaluation.labels import write_labels
from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.evaluation.row_files import (
    EvidenceFile,
    RowColumn,
    iter_tables,
    predictions_array,
    predictions_type,
    read_values,
    write_column,
    write_rows,
)
from evergreen.evaluation.rows import (
    NO_SEASONAL_FILE,
    column_problem,
    labelled_periods,
    read_label_counts,
    write_baselines,
    write_clusters,
    write_groups,
)
from evergreen.evaluation.target_days import write_targets
from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.feature_store.seasonal_columns import SCALE_COLUMN, SEASONAL_FILE, seasonal_file
from evergreen.gates.evidence import (
    Evidence,
    InputSignature,
    MissingEvidence,
    NoChampion,
    OnlineSample,
    StreamedColumn,
)
from evergreen.lake import datasets, fingerprints
from evergreen.scoring.predictions import SCORING_BATCH_ROWS, SCORING_CODE, Champion, TableScorer, candidate_folder
from evergreen.settings import settings
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.spec.prediction_type import PredictionType

# Columns of the file `scores`.
_CLUSTER_PREFIX, GROUP_PREFIX, _BASELINE_PREFIX, COLUMN_PREFIX = "cluster:", "group:", "baseline:", "column:"
_INPUTS_SUFFIX = "_inputs"  # of a table: the columns that a model has learned from, where they have changed since

_JOIN_ROWS = 16 * SCORING_BATCH_ROWS  # each join reads the features anew

_PARSERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "serving_costs": dict,
    "input_signature": lambda content: InputSignature(
        **{side: tuple(map(tuple, columns)) for side, columns in content.items()}
    ),
    "online_sample": lambda content: OnlineSample(**content),
}

log = logging.getLogger(__name__)


def collect_evidence(
    model: ModelSpec, training_set: datasets.Manifest, candidate: datasets.Manifest, champion: Champion | None
) -> datasets.Manifest:
    """Measure and publish what the gates of `model` need, on the file `holdout` of the training set.

    Evidence that cannot be measured (a champion that has seen the holdout, an expression with a typo, an online store
    that is out of date) is published as missing, with the reason, and blocks the gates that need it.

    Raises:
        ScoringError: the candidate cannot be scored.
    """
    measurement, dataset = _Measurement(model, training_set, candidate, champion), evaluation_dataset(model)
    inputs = measurement.inputs()
    base = f"{candidate.partition}-against-{champion.version if champion else 'none'}"
    fingerprint = fingerprints.compute_fingerprint(inputs)
    # The name holds the fingerprint because the ledger refers to a partition for as long as it exists.
    if published := dataset.find(f"{base}-{fingerprint[:16]}", fingerprint):
        return published
    from evergreen.feature_store.training_sets import training_set_dataset

    with tempfile.TemporaryDirectory() as scratch:
        evidence = measurement.evidence(Path(scratch))
        return _publish_evidence(model, base, inputs, evidence, training_set_dataset(model), training_set, champion)


def collect_look_evidence(
    model: ModelSpec, examples: datasets.Manifest, challenger: Champion, champion: Champion
) -> datasets.Manifest:
    """Measure and publish what a look at the challenger needs: both models' scores of all days so far.

    `examples` is published by `training_sets.build_look_set`. Both models are verified by their content, and get their
    own inputs where the features have changed. A champion that cannot be scored is published as missing evidence.

    Raises:
        RegistryError, ScoringError, SignatureError: the challenger cannot be scored.
    """
    from evergreen.feature_store.training_sets import look_dataset

    source, dataset = look_dataset(model), evaluation_dataset(model)
    # Of the gates, a look computes these again.
    gates = tuple(gate for gate in model.gates if isinstance(gate, AgainstChampionGate))
    columns = EvidenceRequirements.from_gates(gates, model.clusters).columns
    inputs: dict[str, Any] = {
        "holdout": examples.files["holdout"].sha256,
        "periods": [examples.inputs["holdout"], examples.inputs["holdout_end"]],
        "label_counts": examples.files["label_counts"].sha256,
        "candidate": {"content": challenger.content},
        "champion": {"content": champion.content},
        "clusters": list(model.clusters),
        "exact": _is_exact(model, examples.files["holdout"]),
        "code": evidence_code(),
        **_prediction_inputs(model),
        **_seasonal_inputs(model, examples),
        **({"columns": columns} if columns else {}),
    }
    fingerprint = fingerprints.compute_fingerprint(inputs)
    as_of = datasets.file_name_of_period(examples.inputs["as_of"])
    base = f"look-{as_of}-at-{challenger.version}-against-{champion.version}"
    if published := dataset.find(f"{base}-{fingerprint[:16]}", fingerprint):
        return published
    holdout = source.file_path(examples, "holdout")
    log.info("Scoring %s rows of the days so far", examples.files["holdout"].rows)
    evidence: dict[str, Any] = {"event_timestamp": RowColumn(holdout, "event_timestamp")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        evidence["label"] = write_labels(holdout, model.prediction_type, folder)
        try:
            evidence |= _score_registered_model("candidate", model, challenger.content, examples, holdout, folder)
        except MissingInputsError as error:
            raise ScoringError(
                f"inputs of the challenger, version {challenger.version}, can no longer be made: {error}; bring them "
                f"back, or `evergreen withdraw {model.name} --reason …`"
            ) from None
        try:
            evidence |= _score_registered_model("champion", model, champion.content, examples, holdout, folder)
        except (MissingInputsError, ScoringError) as error:
            evidence["champion"] = MissingEvidence(f"version {champion.version} cannot be scored: {error}")
        clusters = write_clusters(holdout, model.clusters, folder) | write_targets(model, holdout, folder)
        for name, cluster in clusters.items():
            evidence[_CLUSTER_PREFIX + name] = cluster
        evidence |= _write_queries(model, holdout, folder)
        evidence |= _forecast_columns(model, holdout, seasonal_file(source, examples))
        evidence |= _weight_column(model, holdout) | _gate_columns(columns, holdout)
        return _publish_evidence(model, base, inputs, evidence, source, examples, champion)


def load_evidence(model: ModelSpec, evaluation: datasets.Manifest) -> Evidence:
    """Read the evidence of a published evaluation."""
    dataset = evaluation_dataset(model)
    metadata = json.loads(dataset.file_path(evaluation, "metadata").read_text())
    missing = {name: MissingEvidence(problem) for name, problem in metadata["missing"].items()}
    columns = _read_columns(dataset.file_path(evaluation, "scores"), metadata["exact"])
    clusters: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    gate_columns: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for name, value in {**columns, **missing}.items():
        if name.startswith(_CLUSTER_PREFIX):
            clusters[name.removeprefix(_CLUSTER_PREFIX)] = value
        elif name.startswith(GROUP_PREFIX):
            groups[name.removeprefix(GROUP_PREFIX)] = value
        elif name.startswith(_BASELINE_PREFIX):
            baselines[name.removeprefix(_BASELINE_PREFIX)] = value
        elif name.startswith(COLUMN_PREFIX):
            gate_columns[name.removeprefix(COLUMN_PREFIX)] = value
        elif name != "event_timestamp":
            fields[name] = value
    if "recent_predictions" in evaluation.files:
        recent = _read_columns(dataset.file_path(evaluation, "recent_predictions"), metadata["exact"])
        fields["recent_predictions"] = recent["candidate"]
    for name, parse in _PARSERS.items():
        if name in evaluation.files:
            fields[name] = parse(json.loads(dataset.file_path(evaluation, name).read_text()))
    start, end = metadata["holdout"]
    fields["label_counts"] = {day: tuple(counts) for day, counts in metadata["label_counts"].items()}
    days = feature_spec(model).calendar.dates(start, end)
    fields |= {"holdout": (start, end), "days": days, "clusters": clusters, "groups": groups, "baselines": baselines}
    fields["columns"] = gate_columns
    if "prediction" in metadata:
        fields["prediction_type"] = PredictionType.model_validate(metadata["prediction"])
    no_champion = NoChampion(metadata["no_champion"]) if metadata["no_champion"] else NoChampion()
    return Evidence(**{"champion": no_champion, **fields})


def _read_columns(file: Path, is_exact: bool) -> dict[str, Any]:
    """Return the columns of a file with rows: in memory, or to be read in batches."""
    if not is_exact:
        rows = EvidenceFile(file)
        return {name: StreamedColumn(rows, name) for name in pq.read_schema(file).names}
    table = pq.read_table(file)
    return {name: read_values(table[name]) for name in table.column_names}


def _is_exact(model: ModelSpec, *files: datasets.PublishedFile) -> bool:
    """Return whether gates get all rows of these files in memory: a prediction of several numbers is as many rows."""
    outputs = len(model.prediction_type.outputs) if model.prediction_type else 0
    return max(file.rows or 0 for file in files) * max(outputs, 1) <= settings().exact_rows


def evidence_code() -> dict[str, str]:
    """Return what evidence, scores among it, depends on besides data and models."""
    return fingerprints.code_of(
        ("evergreen.evaluation", *SCORING_CODE, "evergreen.feature_store.offline_store"),
        ("duckdb", "feast", "lightgbm", "numpy", "onnxruntime", "pyarrow", "xgboost-cpu"),
    )


def evaluation_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"evaluations/{model.name}")


class _Measurement:
    """What the gates of a model need about one candidate."""

    def __init__(
        self, model: ModelSpec, training_set: datasets.Manifest, candidate: datasets.Manifest, champion: Champion | None
    ):
        self._model, self._training_set, self._candidate, self._champion = model, training_set, candidate, champion
        self._requirements = EvidenceRequirements.from_gates(model.gates, model.clusters)
        self._serving_columns: Any = ()
        if self._requirements.input_signature:
            from evergreen.evaluation.serving_inputs import serving_columns

            self._serving_columns = serving_columns(model, training_set)

    def inputs(self) -> dict[str, Any]:
        """Return what the evidence depends on; an input that only some gates need is left out if none does."""
        files, champion, requirements = self._training_set.files, self._champion, self._requirements
        judged_files = ("holdout", "recent") if requirements.recent_predictions else ("holdout",)
        inputs: dict[str, Any] = {
            "holdout": files["holdout"].sha256,
            "periods": [self._training_set.inputs["holdout"], self._training_set.inputs["holdout_end"]],
            "label_counts": files["label_counts"].sha256,
            "candidate": {"content": self._candidate.content_hash, "features": self._candidate.inputs["features"]},
            "champion": champion
            and {
                "content": champion.content,
                "labels_until": champion.labels_until,
                "accepted_change": champion.accepted_change,
            },
            "requirements": asdict(requirements),
            "exact": _is_exact(self._model, *(files[name] for name in judged_files if name in files)),
            "code": evidence_code(),
            **_prediction_inputs(self._model),
            **_seasonal_inputs(self._model, self._training_set),
        }
        if requirements.baselines:
            inputs["train"] = files["train"].sha256
        if requirements.recent_predictions and "recent" in files:
            inputs["recent"] = files["recent"].sha256
        if requirements.input_signature:
            columns = self._serving_columns
            serving = columns.problem if isinstance(columns, MissingEvidence) else columns
            inputs["signature"] = {"train": files["train"].schema, "serving": serving}
        if requirements.online_sample_size:
            from evergreen.feature_store.online_store import materialization_state

            state = materialization_state(self._model)
            run_as_of = self._training_set.inputs["known_before"]
            inputs["online"] = {
                "service": self._model.feature_service,
                "materialization": state,
                "run_as_of": run_as_of,
            }
        return inputs

    def evidence(self, folder: Path) -> dict[str, Any]:
        """Return what is required, or why it is missing, by name; row columns are named as in the file `scores`.

        Files that it consists of are written into `folder`.
        """
        from evergreen.feature_store.training_sets import training_set_dataset

        model, training_set, candidate = self._model, self._training_set, self._candidate
        requirements, source = self._requirements, training_set_dataset(model)
        holdout = source.file_path(training_set, "holdout")
        log.info("Scoring %s holdout rows", training_set.files["holdout"].rows)
        evidence: dict[str, Any] = {
            "event_timestamp": RowColumn(holdout, "event_timestamp"),
            "label": write_labels(holdout, model.prediction_type, folder),
        }
        features = tuple(candidate.inputs["features"])
        with candidate_folder(model, candidate) as model_folder:
            evidence["candidate"] = score_file(
                model_folder, holdout, features, folder / "candidate.parquet", model.prediction_type
            )
        if self._champion:
            evidence |= self._score_champion(self._champion, holdout, folder)
        train, seasonal = source.file_path(training_set, "train"), seasonal_file(source, training_set)
        written = {
            _CLUSTER_PREFIX: write_clusters(holdout, requirements.clusters, folder)
            | write_targets(model, holdout, folder),
            GROUP_PREFIX: write_groups(holdout, requirements.groups, folder),
            _BASELINE_PREFIX: write_baselines(
                holdout, train, requirements.baselines, folder, model.prediction_type, seasonal, model.weight
            ),
        }
        evidence |= {prefix + name: column for prefix, columns in written.items() for name, column in columns.items()}
        evidence |= _gate_columns(requirements.columns, holdout)
        evidence |= _write_queries(model, holdout, folder)
        evidence |= _forecast_columns(model, holdout, seasonal) | _weight_column(model, holdout)
        if requirements.recent_predictions:
            evidence["recent_predictions"] = self._score_recent_rows(source, folder)
        if requirements.serving_costs:
            from evergreen.evaluation.serving_costs import measure_serving_costs

            log.info("Measuring what the candidate costs to serve")
            evidence["serving_costs"] = measure_serving_costs(model, candidate, next(iter_tables(holdout)))
        if requirements.input_signature:
            from evergreen.evaluation.serving_inputs import collect_input_signature

            columns = self._serving_columns
            evidence["input_signature"] = collect_input_signature(model, training_set, candidate, columns)
        if sample_size := requirements.online_sample_size:
            from evergreen.evaluation.online_comparison import compare_online_store

            log.info("Comparing the online store with the offline one for %s keys", sample_size)
            run_as_of = datetime.fromisoformat(training_set.inputs["known_before"])
            evidence["online_sample"] = compare_online_store(model, sample_size, run_as_of)
        return evidence

    def _score_champion(self, champion: Champion, holdout: Path, folder: Path) -> dict[str, Any]:
        """Return the champion's scores (n,) of the file `holdout`, or why there are none, by the name of the evidence.

        With its own inputs as `champion_inputs`, if the training set does not have all of them.
        """
        if problem := champion.overlap_problem(self._training_set.inputs["holdout"]):
            return {"champion": MissingEvidence(problem)}
        from evergreen.registry import versions

        if versions.hash_candidate(self._candidate) == champion.content:
            problem = f"version {champion.version} is the candidate itself, byte for byte"
            return {"champion": MissingEvidence(problem)}
        try:
            return _score_registered_model(
                "champion", self._model, champion.content, self._training_set, holdout, folder
            )
        except MissingInputsError as error:
            return {"champion": self._incomparable_champion(champion, error)}
        except (RegistryError, ScoringError) as error:
            return {"champion": MissingEvidence(f"version {champion.version} cannot be scored: {error}")}

    def _incomparable_champion(self, champion: Champion, error: MissingInputsError) -> NoChampion | MissingEvidence:
        """Return why there is no comparison: as no fault where a person has accepted that."""
        is_prediction = isinstance(error, ChangedPredictionError)
        change = "cannot be compared" if is_prediction else "has inputs that can no longer be made"
        problem = f"version {champion.version} {change}: {error}"
        if champion.accepted_change:
            return NoChampion(f"not compared with the champion: {problem}; {champion.accepted_change}")
        command = f"evergreen accept {self._model.name} {champion.version} --reason …"
        way = "declare what it predicts" if is_prediction else "bring them back"
        fix = f"{way}, or accept the change: `{command}` lets the other gates decide"
        return MissingEvidence(f"{problem}; {fix}, when the run is cleared from its plan task on")

    def _score_recent_rows(self, source: datasets.Dataset, folder: Path) -> Path | MissingEvidence:
        """Write the candidate's predictions for the newest day that has a row whose label is not known."""
        if "recent" not in self._training_set.files:
            return MissingEvidence("the training set has no file `recent`: build it again")
        rows = source.file_path(self._training_set, "recent")
        if not self._training_set.files["recent"].rows:
            return MissingEvidence("no day of the window has rows without a known label")
        features = tuple(self._candidate.inputs["features"])
        with candidate_folder(self._model, self._candidate) as model_folder:
            scores = score_file(model_folder, rows, features, folder / "recent.parquet", self._model.prediction_type)
        columns = {"event_timestamp": RowColumn(rows, "event_timestamp"), "candidate": scores}
        return write_rows(folder / "recent_predictions.parquet", columns)


def _prediction_inputs(model: ModelSpec) -> dict[str, Any]:
    """Return what evidence depends on, of the kind of a model: nothing where none is declared."""
    prediction = model.prediction_type
    query = {"query": model.query} if model.query else {}
    forecast = {"forecast": model.forecast.model_dump(mode="json")} if model.forecast else {}
    weight = {"weight": model.weight} if model.weight else {}
    return weight | ({"prediction": prediction.model_dump(mode="json"), **query, **forecast} if prediction else {})


def _gate_columns(names: Sequence[str], holdout: Path) -> dict[str, RowColumn | MissingEvidence]:
    """Return the columns that functions of the model folder ask for."""
    existing = pq.read_schema(holdout).names
    return {COLUMN_PREFIX + name: column_problem(existing, name) or RowColumn(holdout, name) for name in names}


def _weight_column(model: ModelSpec, holdout: Path) -> dict[str, RowColumn | MissingEvidence]:
    """Return the weights of the rows, if the spec names a column."""
    if model.weight is None:
        return {}
    return {"weights": column_problem(pq.read_schema(holdout).names, model.weight) or RowColumn(holdout, model.weight)}


def _seasonal_inputs(model: ModelSpec, examples: datasets.Manifest) -> dict[str, Any]:
    """Return what the evidence about a forecast depends on besides its rows: nothing of other kinds."""
    return (
        {"seasonal": examples.files[SEASONAL_FILE].sha256} if model.forecast and SEASONAL_FILE in examples.files else {}
    )


def _forecast_columns(model: ModelSpec, holdout: Path, seasonal: Path | None) -> dict[str, RowColumn | MissingEvidence]:
    """Return the evidence that only a forecast has."""
    if model.forecast is None:
        return {}
    horizon = model.forecast.horizon
    return {
        "horizons": column_problem(pq.read_schema(holdout).names, horizon) or RowColumn(holdout, horizon),
        "scales": RowColumn(seasonal, SCALE_COLUMN) if seasonal else NO_SEASONAL_FILE,
    }


def _write_queries(model: ModelSpec, holdout: Path, folder: Path) -> dict[str, RowColumn | MissingEvidence]:
    if model.query is None:
        return {}
    queries = folder / "queries"
    queries.mkdir()
    return {"queries": write_clusters(holdout, [model.query], queries)[model.query]}


def score_file(
    model_folder: Path,
    rows: Path,
    feature_names: tuple[str, ...],
    target: Path,
    prediction: PredictionType | None = None,
) -> RowColumn:
    """Write the predictions for the rows of a Parquet file by the model in a folder; raises as `score_table` does."""
    scorer = TableScorer(model_folder, pq.read_schema(rows).names, feature_names, prediction)
    tables = iter_tables(rows, feature_names)
    type_ = predictions_type(len(prediction.outputs) if prediction else 0)
    return write_column(target, type_, (predictions_array(scorer.score(table)) for table in tables))


def _score_registered_model(
    name: str, model: ModelSpec, content: str, examples: datasets.Manifest, rows: Path, folder: Path
) -> dict[str, Any]:
    """Write the scores (n,) of the file `rows` by the registered model of this content, as evidence with this name.

    Also its own inputs, if the examples do not have all of them.

    Raises:
        ChangedPredictionError: it predicts something else than the spec declares.
        MissingInputsError: columns that it has learned from can no longer be made.
        RegistryError, ScoringError, SignatureError: as `versions.open_model`.
    """
    from evergreen.registry import versions

    target, own_inputs = folder / f"{name}.parquet", folder / f"{name}{_INPUTS_SUFFIX}.parquet"
    with versions.open_model(model.name, content) as (model_folder, _):
        inputs = versions.read_model_inputs(model_folder)
        if problem := inputs.prediction_problem(model.prediction_type):
            raise ChangedPredictionError(problem)
        changed = inputs.changed_columns(examples)
        if changed:
            _write_own_inputs(model, examples, rows, inputs, own_inputs)
        scores = score_file(
            model_folder, own_inputs if changed else rows, inputs.column_names, target, model.prediction_type
        )
    if not changed:
        return {name: scores}
    log.info("Features have changed; made for the %s as it learned them: %s", name, ", ".join(changed))
    return {name: scores, f"{name}{_INPUTS_SUFFIX}": own_inputs}


def _write_own_inputs(
    model: ModelSpec, examples: datasets.Manifest, rows: Path, inputs: ModelInputs, target: Path
) -> None:
    """Write the inputs of a model as it learned them, for the file `rows`: joined for so many rows at a time."""
    from evergreen.feature_store.champion_inputs import recreate_inputs

    writer: pq.ParquetWriter | None = None
    try:
        for table in iter_tables(rows, batch_rows=_JOIN_ROWS):
            own_inputs = recreate_inputs(model, examples, table, inputs)
            writer = writer or pq.ParquetWriter(target, own_inputs.schema)
            writer.write_table(own_inputs)
    finally:
        if writer:
            writer.close()


def _publish_evidence(
    model: ModelSpec,
    base: str,
    inputs: Mapping[str, Any],
    evidence: Mapping[str, Any],
    source: datasets.Dataset,
    examples: datasets.Manifest,
    champion: Champion | None,
) -> datasets.Manifest:
    """Publish the evidence about the `examples` of `source` as a partition whose name begins with `base`."""
    label_counts = read_label_counts(source.file_path(examples, "label_counts"))
    missing = {name: value.problem for name, value in evidence.items() if isinstance(value, MissingEvidence)}
    no_champion = next((value.reason for value in evidence.values() if isinstance(value, NoChampion)), None)
    # A registry or an online store may be repaired, and features of another model republished, without a change of any
    # input. With these in the fingerprint this evaluation stays as it is, and the next one does not find it.
    problems: dict[str, Any] = {"missing": missing} if missing else {}
    sample = evidence.get("online_sample")
    if isinstance(sample, OnlineSample) and (sample.mismatch_count or sample.expired_count):
        problems["online"] = asdict(sample)
    if no_champion:
        problems["no_champion"] = no_champion
    for name, value in evidence.items():
        if name.endswith(_INPUTS_SUFFIX):
            problems[name] = storage.file_sha256(value)
    metadata = {
        "holdout": labelled_periods(examples, label_counts, feature_spec(model).calendar),
        "label_counts": label_counts,
        "champion": champion.version if champion else None,
        "no_champion": no_champion,
        "missing": missing,
        "exact": inputs["exact"],
        **_prediction_inputs(model),
    }
    inputs, dataset = {**inputs, "problems": problems} if problems else inputs, evaluation_dataset(model)
    fingerprint = fingerprints.compute_fingerprint(inputs)
    partition = f"{base}-{fingerprint[:16]}"
    measured = {name: value for name, value in evidence.items() if not isinstance(value, MissingEvidence | NoChampion)}
    files = _write_files(dataset.stage(partition, fingerprint), measured, metadata)
    return dataset.publish(partition, fingerprint, files, inputs)


def _write_files(folder: Path, evidence: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Path]:
    """Write the files of a partition: row columns as one table, other tables as they are, the rest as JSON."""
    columns = {name: value for name, value in evidence.items() if isinstance(value, RowColumn)}
    files = {"scores": write_rows(folder / "scores.parquet", columns)}
    documents = {name: value for name, value in evidence.items() if name not in columns}
    for name, value in {"metadata": metadata, **documents}.items():
        if isinstance(value, Path):
            files[name] = folder / f"{name}.parquet"
            shutil.move(value, files[name])
        else:
            files[name] = folder / f"{name}.json"
            content = value if isinstance(value, Mapping) else asdict(value)
            files[name].write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return files
