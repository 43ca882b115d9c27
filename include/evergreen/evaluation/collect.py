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
from evergreen.evaluation.requirements import Asked
from evergreen.gates.evidence import Evidence, Missing, NoChampion, OnlineSample, Signature
from evergreen.lake import datasets, fingerprints
from evergreen.scoring.predictions import Champion, score, score_candidate
from evergreen.spec.model import Model

_MODULES = (
    "asked",
    "difference",
    "online",
    "predictors",
    "published",
    "rows",
    "scoring",
    "serving",
    "signature",
)
_LIBRARIES = ("duckdb", "feast", "numpy", "onnxruntime", "pyarrow", "xgboost-cpu")


def evaluate(
    model: Model,
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
    asked, target = Asked.by(model.gates), dataset(model)
    serving = _serving_columns(model) if asked.signature else ()
    base = _inputs(model, training_set, candidate, champion, asked, serving)
    partition = f"{candidate.partition}-against-{champion.version if champion else 'none'}"
    mark = fingerprints.fingerprint(base)
    if done := target.published(_own(partition, mark), mark):
        return done
    found = _found(model, training_set, candidate, champion, asked, serving)
    missing = {name: what.problem for name, what in found.items() if isinstance(what, Missing)}
    # A registry or an online store may be mended without any input having changed: what was amiss there is part
    # of the fingerprint, so that this is kept as it is, and not found by the next who evaluates.
    amiss = {"missing": missing} if missing else {}
    if isinstance(online := found.get("online"), OnlineSample) and online.different:
        amiss["online"] = asdict(online)
    inputs = base | ({"amiss": amiss} if amiss else {})
    mark = fingerprints.fingerprint(inputs)
    about = {
        "days": [training_set.inputs["holdout"], training_set.inputs["as_of"]],
        "champion": champion.version if champion else None,
        "missing": missing,
    }
    staged = target.stage(_own(partition, mark), mark)
    files = _write(staged, {name: what for name, what in found.items() if name not in missing}, about)
    return target.publish(_own(partition, mark), mark, files, inputs)


def evidence(model: Model, evaluation: datasets.Manifest) -> Evidence:
    """What `evaluate` published, as the gates are shown it."""
    source = dataset(model)
    about = json.loads(source.path(evaluation, "about").read_text())
    missing = {name: Missing(problem) for name, problem in about["missing"].items()}
    scores = pq.read_table(source.path(evaluation, "scores"))

    groups: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    for name in (*scores.column_names, *missing):
        if name.startswith(_GROUP):
            groups[name.removeprefix(_GROUP)] = missing.get(name) or scores[name].to_pylist()
        elif name.startswith(_BASELINE):
            baselines[name.removeprefix(_BASELINE)] = missing.get(name) or scores[name].to_numpy()
    champion: Any = NoChampion()
    if about["champion"]:
        champion = missing.get("champion") or scores["champion"].to_numpy()
    others: dict[str, Any] = {name: what for name, what in missing.items() if name in ("recent", *_READ)}
    if "recent" in evaluation.files:
        others["recent"] = pq.read_table(source.path(evaluation, "recent"))["candidate"].to_numpy()
    for name, made in _READ.items():
        if name in evaluation.files:
            others[name] = made(json.loads(source.path(evaluation, name).read_text()))
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


_GROUP, _BASELINE = "group:", "baseline:"
_READ: dict[str, Callable[[dict[str, Any]], Any]] = {
    "serving": dict,
    "signature": lambda found: Signature(
        *(tuple((name, type_) for name, type_ in found[side]) for side in ("model", "serving"))
    ),
    "online": lambda found: OnlineSample(**found),
}


def measuring_code() -> dict[str, str]:
    """What evidence, scores among it, depends on besides data and models."""
    return fingerprints.code((f"{__package__}.{part}" for part in _MODULES), _LIBRARIES)


def dataset(model: Model) -> datasets.Dataset:
    return datasets.dataset(f"evaluations/{model.name}")


def _own(partition: str, mark: str) -> str:
    """The name of a partition that is never replaced: the ledger refers to it for as long as there is one."""
    return f"{partition}-{mark[:16]}"


def _inputs(
    model: Model,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    champion: Champion | None,
    asked: Asked,
    serving_columns: Any,
) -> dict[str, Any]:
    """What the evidence depends on; of what only some gates ask for, only if one does."""
    inputs: dict[str, Any] = {
        "holdout": training_set.files["holdout"].sha256,
        "days": [training_set.inputs["holdout"], training_set.inputs["as_of"]],
        "candidate": {"content": candidate.content, "features": candidate.inputs["features"]},
        "champion": champion and {"version": champion.version, "seen_until": champion.seen_until.isoformat()},
        "asked": asdict(asked),
        "code": measuring_code(),
    }
    if asked.baselines:
        inputs["train"] = training_set.files["train"].sha256
    if asked.recent and "recent" in training_set.files:
        inputs["recent"] = training_set.files["recent"].sha256
    if asked.signature:
        learned = training_set.files["train"].schema
        told = serving_columns.problem if isinstance(serving_columns, Missing) else serving_columns
        inputs["signature"] = {"learned": learned, "serving": told}
    if asked.online:
        from evergreen.feature_store import online_store

        inputs["online"] = {"service": model.feature_service, "held": online_store.record(model)}
    return inputs


def _serving_columns(model: Model) -> Any:
    from evergreen.evaluation.signature import serving_columns

    return serving_columns(model)


def _found(
    model: Model,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    champion: Champion | None,
    asked: Asked,
    serving_columns: Any,
) -> dict[str, Any]:
    """All that is asked for, by name, or why it is `Missing`; columns of rows are named as in the file `scores`."""
    from evergreen.feature_store import training_sets

    source = training_sets.dataset(model)
    holdout = pq.read_table(source.path(training_set, "holdout"))
    print(f"scoring {holdout.num_rows} holdout rows", flush=True)
    found: dict[str, Any] = {name: holdout[name] for name in ("event_timestamp", "label")}
    found["candidate"] = pa.array(score_candidate(model, candidate, holdout))
    if champion:
        found["champion"] = _score_champion(model, champion, training_set, holdout)
    for expression, group in rows.groups(holdout, asked.groups).items():
        found[_GROUP + expression] = group if isinstance(group, Missing) else pa.array(group, pa.string())
    train = source.path(training_set, "train")
    for name, baseline in rows.baselines(holdout, train, asked.baselines).items():
        found[_BASELINE + name] = baseline if isinstance(baseline, Missing) else pa.array(baseline)
    if asked.recent:
        found["recent"] = _recent(model, training_set, candidate)
    if asked.serving:
        from evergreen.evaluation import serving

        print("measuring what the candidate costs to serve", flush=True)
        found["serving"] = serving.measure(model, candidate, holdout)
    if asked.signature:
        from evergreen.evaluation.signature import signature

        found["signature"] = signature(model, training_set, candidate, serving_columns)
    if asked.online:
        from evergreen.evaluation import online

        print(f"comparing the online store with the offline one for {asked.online} entities", flush=True)
        found["online"] = online.sample(model, training_set, holdout, asked.online)
    return found


def _write(folder: Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Path]:
    """The files of a partition: columns of rows together, a table by itself, the rest as JSON."""
    columns = {name: what for name, what in found.items() if isinstance(what, pa.Array | pa.ChunkedArray)}
    files: dict[str, Path] = {}
    for name, what in {"scores": pa.table(columns), "about": about, **found}.items():
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
    model: Model, champion: Champion, training_set: datasets.Manifest, holdout: pa.Table
) -> pa.Array | Missing:
    """The champion's scores (n,) of the holdout's rows, or why there are none."""
    if problem := champion.has_seen(date.fromisoformat(training_set.inputs["holdout"])):
        return Missing(problem)
    from evergreen.registry import versions

    try:
        with versions.artifact(model, champion.version) as folder:
            return pa.array(score(folder, holdout, versions.inputs_of(folder)))
    except ScoringError as error:
        return Missing(f"version {champion.version} cannot be scored: {error}")


def _recent(
    model: Model, training_set: datasets.Manifest, candidate: datasets.Manifest
) -> pa.Table | Missing:
    """The candidate's predictions for the rows of the newest day that has one whose label is not known."""
    from evergreen.feature_store import training_sets

    if "recent" not in training_set.files:
        return Missing("the training set has no file `recent`: build it again")
    table = pq.read_table(training_sets.dataset(model).path(training_set, "recent"))
    if not table.num_rows:
        return Missing("no day of the window has rows without a known label")
    return pa.table(
        {
            "event_timestamp": table["event_timestamp"],
            "candidate": score_candidate(model, candidate, table),
        }
    )
