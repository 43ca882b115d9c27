"""Collects the evidence about one candidate, publishes it as one partition, and reads it back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import MissingInputsError, RegistryError, ScoringError
from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.evaluation.rows import (
    compute_baselines,
    compute_clusters,
    compute_groups,
    labelled_periods,
    read_label_counts,
)
from evergreen.gates.evidence import Evidence, InputSignature, MissingEvidence, NoChampion, OnlineSample
from evergreen.lake import datasets, fingerprints
from evergreen.scoring.predictions import Champion, score_candidate, score_table
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

# Columns of the file `scores`.
_CLUSTER_PREFIX, _GROUP_PREFIX, _BASELINE_PREFIX = "cluster:", "group:", "baseline:"
_INPUTS_SUFFIX = "_inputs"  # of a table: the columns that a model has learned from, where they have changed since

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

    evidence = measurement.evidence()
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
    inputs: dict[str, Any] = {
        "holdout": examples.files["holdout"].sha256,
        "periods": [examples.inputs["holdout"], examples.inputs["holdout_end"]],
        "label_counts": examples.files["label_counts"].sha256,
        "candidate": {"content": challenger.content},
        "champion": {"content": champion.content},
        "clusters": list(model.clusters),
        "code": evidence_code(),
    }
    fingerprint = fingerprints.compute_fingerprint(inputs)
    base = f"look-{datasets.file_name_of_period(examples.inputs['as_of'])}-at-{challenger.version}-against-{champion.version}"
    if published := dataset.find(f"{base}-{fingerprint[:16]}", fingerprint):
        return published
    holdout = pq.read_table(source.file_path(examples, "holdout"))
    log.info("Scoring %s rows of the days so far", holdout.num_rows)
    evidence: dict[str, Any] = {name: holdout[name] for name in ("event_timestamp", "label")}
    try:
        evidence |= _score_registered_model("candidate", model, challenger.content, examples, holdout)
    except MissingInputsError as error:
        raise ScoringError(
            f"inputs of the challenger, version {challenger.version}, can no longer be made: {error}; bring them back, "
            f"or `evergreen withdraw {model.name} --reason …`"
        ) from None
    try:
        evidence |= _score_registered_model("champion", model, champion.content, examples, holdout)
    except (MissingInputsError, ScoringError) as error:
        evidence["champion"] = MissingEvidence(f"version {champion.version} cannot be scored: {error}")
    for name, cluster in compute_clusters(holdout, model.clusters).items():
        evidence[_CLUSTER_PREFIX + name] = _to_array(cluster, pa.string())
    return _publish_evidence(model, base, inputs, evidence, source, examples, champion)


def load_evidence(model: ModelSpec, evaluation: datasets.Manifest) -> Evidence:
    """Read the evidence of a published evaluation."""
    dataset = evaluation_dataset(model)
    metadata = json.loads(dataset.file_path(evaluation, "metadata").read_text())
    missing = {name: MissingEvidence(problem) for name, problem in metadata["missing"].items()}
    scores = pq.read_table(dataset.file_path(evaluation, "scores"))
    clusters: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for name in (*scores.column_names, *missing):
        if name.startswith(_CLUSTER_PREFIX):
            clusters[name.removeprefix(_CLUSTER_PREFIX)] = missing.get(name) or scores[name].to_pylist()
        elif name.startswith(_GROUP_PREFIX):
            groups[name.removeprefix(_GROUP_PREFIX)] = missing.get(name) or scores[name].to_pylist()
        elif name.startswith(_BASELINE_PREFIX):
            baselines[name.removeprefix(_BASELINE_PREFIX)] = missing.get(name) or scores[name].to_numpy()
        elif name != "event_timestamp":
            fields[name] = missing.get(name) or scores[name].to_numpy()
    if "recent_predictions" in evaluation.files:
        recent = pq.read_table(dataset.file_path(evaluation, "recent_predictions"))
        fields["recent_predictions"] = recent["candidate"].to_numpy()
    for name, parse in _PARSERS.items():
        if name in evaluation.files:
            fields[name] = parse(json.loads(dataset.file_path(evaluation, name).read_text()))
    start, end = metadata["holdout"]
    fields["label_counts"] = {day: tuple(counts) for day, counts in metadata["label_counts"].items()}
    days = feature_spec(model).calendar.dates(start, end)
    fields |= {"holdout": (start, end), "days": days, "clusters": clusters, "groups": groups, "baselines": baselines}
    no_champion = NoChampion(metadata["no_champion"]) if metadata["no_champion"] else NoChampion()
    return Evidence(**{"champion": no_champion, **fields})


def evidence_code() -> dict[str, str]:
    """Return what evidence, scores among it, depends on besides data and models."""
    return fingerprints.code_of(
        ("evergreen.evaluation", "evergreen.scoring", "evergreen.feature_store.offline_store"),
        ("duckdb", "feast", "numpy", "onnxruntime", "pyarrow", "xgboost-cpu"),
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

            self._serving_columns = serving_columns(model)

    def inputs(self) -> dict[str, Any]:
        """Return what the evidence depends on; an input that only some gates need is left out if none does."""
        files, champion, requirements = self._training_set.files, self._champion, self._requirements
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
            "code": evidence_code(),
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
            inputs["online"] = {"service": self._model.feature_service, "materialization": state}
        return inputs

    def evidence(self) -> dict[str, Any]:
        """Return what is required, or why it is missing, by name; row columns are named as in the file `scores`."""
        from evergreen.feature_store.training_sets import training_set_dataset

        model, training_set, candidate = self._model, self._training_set, self._candidate
        requirements, source = self._requirements, training_set_dataset(model)
        holdout = pq.read_table(source.file_path(training_set, "holdout"))
        log.info("Scoring %s holdout rows", holdout.num_rows)
        evidence: dict[str, Any] = {name: holdout[name] for name in ("event_timestamp", "label")}
        evidence["candidate"] = pa.array(score_candidate(model, candidate, holdout))
        if self._champion:
            evidence |= self._score_champion(self._champion, holdout)
        for name, cluster in compute_clusters(holdout, requirements.clusters).items():
            evidence[_CLUSTER_PREFIX + name] = _to_array(cluster, pa.string())
        for expression, group in compute_groups(holdout, requirements.groups).items():
            evidence[_GROUP_PREFIX + expression] = _to_array(group, pa.string())
        baselines = compute_baselines(holdout, source.file_path(training_set, "train"), requirements.baselines)
        for name, baseline in baselines.items():
            evidence[_BASELINE_PREFIX + name] = _to_array(baseline, pa.float64())
        if requirements.recent_predictions:
            evidence["recent_predictions"] = self._score_recent_rows(source)
        if requirements.serving_costs:
            from evergreen.evaluation.serving_costs import measure_serving_costs

            log.info("Measuring what the candidate costs to serve")
            evidence["serving_costs"] = measure_serving_costs(model, candidate, holdout)
        if requirements.input_signature:
            from evergreen.evaluation.serving_inputs import collect_input_signature

            columns = self._serving_columns
            evidence["input_signature"] = collect_input_signature(model, training_set, candidate, columns)
        if sample_size := requirements.online_sample_size:
            from evergreen.evaluation.serving_inputs import compare_online_store

            log.info("Comparing the online store with the offline one for %s entities", sample_size)
            evidence["online_sample"] = compare_online_store(model, training_set, holdout, sample_size)
        return evidence

    def _score_champion(self, champion: Champion, holdout: pa.Table) -> dict[str, Any]:
        """Return the champion's scores (n,) of the holdout, or why there are none, by the name of the evidence.

        With its own inputs as `champion_inputs`, if the training set does not have all of them.
        """
        if problem := champion.overlap_problem(self._training_set.inputs["holdout"]):
            return {"champion": MissingEvidence(problem)}
        from evergreen.registry import versions

        if versions.hash_candidate(self._candidate) == champion.content:
            problem = f"version {champion.version} is the candidate itself, byte for byte"
            return {"champion": MissingEvidence(problem)}
        try:
            return _score_registered_model("champion", self._model, champion.content, self._training_set, holdout)
        except MissingInputsError as error:
            return {"champion": self._incomparable_champion(champion, error)}
        except (RegistryError, ScoringError) as error:
            return {"champion": MissingEvidence(f"version {champion.version} cannot be scored: {error}")}

    def _incomparable_champion(self, champion: Champion, error: MissingInputsError) -> NoChampion | MissingEvidence:
        """Return why there is no comparison: as no fault where a person has accepted that."""
        problem = f"inputs of version {champion.version} can no longer be made: {error}"
        if champion.accepted_change:
            return NoChampion(f"not compared with the champion: {problem}; {champion.accepted_change}")
        command = f"evergreen accept {self._model.name} {champion.version} --reason …"
        fix = f"bring them back, or accept the change: `{command}` lets the other gates decide"
        return MissingEvidence(f"{problem}; {fix}, when the run is cleared from its plan task on")

    def _score_recent_rows(self, source: datasets.Dataset) -> pa.Table | MissingEvidence:
        """Return the candidate's predictions for the newest day that has a row whose label is not known."""
        if "recent" not in self._training_set.files:
            return MissingEvidence("the training set has no file `recent`: build it again")
        rows = pq.read_table(source.file_path(self._training_set, "recent"))
        if not rows.num_rows:
            return MissingEvidence("no day of the window has rows without a known label")
        scores = score_candidate(self._model, self._candidate, rows)
        return pa.table({"event_timestamp": rows["event_timestamp"], "candidate": scores})


def _score_registered_model(
    name: str, model: ModelSpec, content: str, examples: datasets.Manifest, rows: pa.Table
) -> dict[str, Any]:
    """Return the scores (n,) of `rows` by the registered model of this content, as evidence with this name.

    Also its own inputs, if the examples do not have all of them.

    Raises:
        MissingInputsError: columns that it has learned from can no longer be made.
        RegistryError, ScoringError, SignatureError: as `versions.open_model`.
    """
    from evergreen.feature_store.champion_inputs import recreate_inputs
    from evergreen.registry import versions

    with versions.open_model(model.name, content) as (folder, _):
        inputs = versions.read_model_inputs(folder)
        changed = inputs.changed_columns(examples)
        own_inputs = recreate_inputs(model, examples, rows, inputs) if changed else None
        scores = score_table(folder, rows if own_inputs is None else own_inputs, inputs.column_names)
    if own_inputs is None:
        return {name: pa.array(scores)}
    log.info("Features have changed; made for the %s as it learned them: %s", name, ", ".join(changed))
    return {name: pa.array(scores), f"{name}{_INPUTS_SUFFIX}": own_inputs}


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
    if isinstance(sample, OnlineSample) and sample.mismatch_count:
        problems["online"] = asdict(sample)
    if no_champion:
        problems["no_champion"] = no_champion
    for name, value in evidence.items():
        if isinstance(value, pa.Table) and name.endswith(_INPUTS_SUFFIX):
            problems[name] = _table_sha256(value)
    metadata = {
        "holdout": labelled_periods(examples, label_counts, feature_spec(model).calendar),
        "label_counts": label_counts,
        "champion": champion.version if champion else None,
        "no_champion": no_champion,
        "missing": missing,
    }
    inputs, dataset = {**inputs, "problems": problems} if problems else inputs, evaluation_dataset(model)
    fingerprint = fingerprints.compute_fingerprint(inputs)
    partition = f"{base}-{fingerprint[:16]}"
    measured = {name: value for name, value in evidence.items() if not isinstance(value, MissingEvidence | NoChampion)}
    files = _write_files(dataset.stage(partition, fingerprint), measured, metadata)
    return dataset.publish(partition, fingerprint, files, inputs)


def _table_sha256(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sha256(sink.getvalue()).hexdigest()


def _to_array(values: Any, type_: pa.DataType) -> pa.Array | MissingEvidence:
    return values if isinstance(values, MissingEvidence) else pa.array(values, type_)


def _write_files(folder: Path, evidence: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Path]:
    """Write the files of a partition: row columns as one table, other tables by themselves, the rest as JSON."""
    columns = {name: value for name, value in evidence.items() if isinstance(value, pa.Array | pa.ChunkedArray)}
    documents = {name: value for name, value in evidence.items() if name not in columns}
    files: dict[str, Path] = {}
    for name, value in {"scores": pa.table(columns), "metadata": metadata, **documents}.items():
        if isinstance(value, pa.Table):
            files[name] = folder / f"{name}.parquet"
            pq.write_table(value, files[name])
        else:
            files[name] = folder / f"{name}.json"
            content = value if isinstance(value, Mapping) else asdict(value)
            files[name].write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return files
