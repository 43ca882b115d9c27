"""The evidence of one candidate: measured, published as one partition, and read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import ScoringError
from evergreen.evaluation import rows
from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.gates.evidence import Evidence, InputSignature, MissingEvidence, NoChampion, OnlineSample
from evergreen.lake import datasets, fingerprints
from evergreen.scoring.predictions import Champion, score_candidate, score_table
from evergreen.spec.model import ModelSpec

_MODULES = (
    "evergreen.evaluation.collect",
    "evergreen.evaluation.difference",
    "evergreen.evaluation.online",
    "evergreen.evaluation.requirements",
    "evergreen.evaluation.rows",
    "evergreen.evaluation.serving",
    "evergreen.evaluation.signature",
    "evergreen.scoring.predictions",
    "evergreen.scoring.predictors",
)
_LIBRARIES = ("duckdb", "feast", "numpy", "onnxruntime", "pyarrow", "xgboost-cpu")


def collect_evidence(
    model: ModelSpec,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    champion: Champion | None,
) -> datasets.Manifest:
    """Measure and publish what the gates of `model` ask for, with the file `holdout` of the training set.

    What cannot be had (a champion that has seen the holdout or cannot score it, an expression with a typo, an
    online store that is behind) is evidence too: the reason is published, and blocks the gates that need it.

    Raises:
        ScoringError: the candidate cannot be scored.
    """
    asked, target = EvidenceRequirements.from_gates(model.gates), evaluation_dataset(model)
    serving = _serving_columns(model) if asked.input_signature else ()
    base = _fingerprint_inputs(model, training_set, candidate, champion, asked, serving)
    partition = f"{candidate.partition}-against-{champion.version if champion else 'none'}"
    mark = fingerprints.compute_fingerprint(base)
    if done := target.find(_partition_name(partition, mark), mark):
        return done
    found = _measure_evidence(model, training_set, candidate, champion, asked, serving)
    missing = {name: what.problem for name, what in found.items() if isinstance(what, MissingEvidence)}
    # A registry or an online store may be mended without any input having changed: what was amiss there is part
    # of the fingerprint, so that this is kept as it is, and not found by the next who evaluates.
    amiss = {"missing": missing} if missing else {}
    if isinstance(online := found.get("online_sample"), OnlineSample) and online.mismatch_count:
        amiss["online"] = asdict(online)
    inputs = base | ({"amiss": amiss} if amiss else {})
    mark = fingerprints.compute_fingerprint(inputs)
    about = {
        "days": [training_set.inputs["holdout"], training_set.inputs["as_of"]],
        "champion": champion.version if champion else None,
        "missing": missing,
    }
    staged = target.stage(_partition_name(partition, mark), mark)
    files = _write_files(staged, {name: what for name, what in found.items() if name not in missing}, about)
    return target.publish(_partition_name(partition, mark), mark, files, inputs)


def load_evidence(model: ModelSpec, evaluation: datasets.Manifest) -> Evidence:
    """What `evaluate` published, as the gates are shown it."""
    source = evaluation_dataset(model)
    about = json.loads(source.file_path(evaluation, "about").read_text())
    missing = {name: MissingEvidence(problem) for name, problem in about["missing"].items()}
    scores = pq.read_table(source.file_path(evaluation, "scores"))

    groups: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    for name in (*scores.column_names, *missing):
        if name.startswith(_GROUP_PREFIX):
            groups[name.removeprefix(_GROUP_PREFIX)] = missing.get(name) or scores[name].to_pylist()
        elif name.startswith(_BASELINE_PREFIX):
            baselines[name.removeprefix(_BASELINE_PREFIX)] = missing.get(name) or scores[name].to_numpy()
    champion: Any = NoChampion()
    if about["champion"]:
        champion = missing.get("champion") or scores["champion"].to_numpy()
    others: dict[str, Any] = {name: what for name, what in missing.items() if name in ("recent_predictions", *_READERS)}
    if "recent_predictions" in evaluation.files:
        recent = pq.read_table(source.file_path(evaluation, "recent_predictions"))
        others["recent_predictions"] = recent["candidate"].to_numpy()
    for name, made in _READERS.items():
        if name in evaluation.files:
            others[name] = made(json.loads(source.file_path(evaluation, name).read_text()))
    first, end = (date.fromisoformat(day) for day in about["days"])
    return Evidence(
        label=scores["label"].to_numpy(),
        candidate=scores["candidate"].to_numpy(),
        champion=champion,
        days=(first, end),
        groups=groups,
        baselines=baselines,
        **others,
    )


_GROUP_PREFIX, _BASELINE_PREFIX = "group:", "baseline:"
_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "serving_costs": dict,
    "input_signature": lambda found: InputSignature(
        *(tuple((name, type_) for name, type_ in found[side]) for side in ("model_columns", "serving_columns"))
    ),
    "online_sample": lambda found: OnlineSample(**found),
}


def evidence_code() -> dict[str, str]:
    """What evidence, scores among it, depends on besides data and models."""
    return fingerprints.code_versions(_MODULES, _LIBRARIES)


def evaluation_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"evaluations/{model.name}")


def _partition_name(partition: str, fingerprint: str) -> str:
    """The name of a partition that is never replaced: the ledger refers to it for as long as there is one."""
    return f"{partition}-{fingerprint[:16]}"


def _fingerprint_inputs(
    model: ModelSpec,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    champion: Champion | None,
    requirements: EvidenceRequirements,
    serving_columns: Any,
) -> dict[str, Any]:
    """What the evidence depends on; of what only some gates ask for, only if one does."""
    inputs: dict[str, Any] = {
        "holdout": training_set.files["holdout"].sha256,
        "days": [training_set.inputs["holdout"], training_set.inputs["as_of"]],
        "candidate": {"content": candidate.content_hash, "features": candidate.inputs["features"]},
        "champion": champion and {"version": champion.version, "labels_until": champion.labels_until.isoformat()},
        "asked": asdict(requirements),
        "code": evidence_code(),
    }
    if requirements.baselines:
        inputs["train"] = training_set.files["train"].sha256
    if requirements.recent_predictions and "recent" in training_set.files:
        inputs["recent"] = training_set.files["recent"].sha256
    if requirements.input_signature:
        learned = training_set.files["train"].schema
        told = serving_columns.problem if isinstance(serving_columns, MissingEvidence) else serving_columns
        inputs["signature"] = {"learned": learned, "serving": told}
    if requirements.online_sample_size:
        from evergreen.feature_store import online_store

        inputs["online"] = {
            "service": model.feature_service,
            "held": online_store.materialization_state(model),
        }
    return inputs


def _serving_columns(model: ModelSpec) -> Any:
    from evergreen.evaluation.signature import serving_columns

    return serving_columns(model)


def _measure_evidence(
    model: ModelSpec,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    champion: Champion | None,
    requirements: EvidenceRequirements,
    serving_columns: Any,
) -> dict[str, Any]:
    """All that is asked for, by name, or why it is `Missing`; columns of rows are named as in the file `scores`."""
    from evergreen.feature_store import training_sets

    source = training_sets.training_set_dataset(model)
    holdout = pq.read_table(source.file_path(training_set, "holdout"))
    print(f"scoring {holdout.num_rows} holdout rows", flush=True)
    found: dict[str, Any] = {name: holdout[name] for name in ("event_timestamp", "label")}
    found["candidate"] = pa.array(score_candidate(model, candidate, holdout))
    if champion:
        found["champion"] = _score_champion(model, champion, training_set, holdout)
    for expression, group in rows.compute_groups(holdout, requirements.groups).items():
        found[_GROUP_PREFIX + expression] = (
            group if isinstance(group, MissingEvidence) else pa.array(group, pa.string())
        )
    train = source.file_path(training_set, "train")
    for name, baseline in rows.compute_baselines(holdout, train, requirements.baselines).items():
        found[_BASELINE_PREFIX + name] = baseline if isinstance(baseline, MissingEvidence) else pa.array(baseline)
    if requirements.recent_predictions:
        found["recent_predictions"] = _score_recent_rows(model, training_set, candidate)
    if requirements.serving_costs:
        from evergreen.evaluation import serving

        print("measuring what the candidate costs to serve", flush=True)
        found["serving_costs"] = serving.measure_serving_costs(model, candidate, holdout)
    if requirements.input_signature:
        from evergreen.evaluation.signature import collect_input_signature

        found["input_signature"] = collect_input_signature(model, training_set, candidate, serving_columns)
    if requirements.online_sample_size:
        from evergreen.evaluation import online

        print(
            f"comparing the online store with the offline one for {requirements.online_sample_size} entities",
            flush=True,
        )
        found["online_sample"] = online.compare_online_store(
            model, training_set, holdout, requirements.online_sample_size
        )
    return found


def _write_files(folder: Path, measurements: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Path]:
    """The files of a partition: columns of rows together, a table by itself, the rest as JSON."""
    columns = {name: what for name, what in measurements.items() if isinstance(what, pa.Array | pa.ChunkedArray)}
    files: dict[str, Path] = {}
    for name, what in {"scores": pa.table(columns), "about": metadata, **measurements}.items():
        if name in columns:
            continue
        if isinstance(what, pa.Table):
            files[name] = folder / f"{name}.parquet"
            pq.write_table(what, files[name])
        else:
            files[name] = folder / f"{name}.json"
            content = what if isinstance(what, Mapping) else asdict(what)
            files[name].write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return files


def _score_champion(
    model: ModelSpec, champion: Champion, training_set: datasets.Manifest, holdout: pa.Table
) -> pa.Array | MissingEvidence:
    """The champion's scores (n,) of the holdout's rows, or why there are none."""
    if problem := champion.overlap_problem(date.fromisoformat(training_set.inputs["holdout"])):
        return MissingEvidence(problem)
    from evergreen.registry import versions

    try:
        with versions.open_artifact(model, champion.version) as folder:
            return pa.array(score_table(folder, holdout, versions.read_input_columns(folder)))
    except ScoringError as error:
        return MissingEvidence(f"version {champion.version} cannot be scored: {error}")


def _score_recent_rows(
    model: ModelSpec, training_set: datasets.Manifest, candidate: datasets.Manifest
) -> pa.Table | MissingEvidence:
    """The candidate's predictions for the rows of the newest day that has one whose label is not known."""
    from evergreen.feature_store import training_sets

    if "recent" not in training_set.files:
        return MissingEvidence("the training set has no file `recent`: build it again")
    table = pq.read_table(training_sets.training_set_dataset(model).file_path(training_set, "recent"))
    if not table.num_rows:
        return MissingEvidence("no day of the window has rows without a known label")
    return pa.table(
        {
            "event_timestamp": table["event_timestamp"],
            "candidate": score_candidate(model, candidate, table),
        }
    )
