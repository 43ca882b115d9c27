"""Scoring: the candidate and the champion on the same holdout rows, kept as evidence for the gates."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from evergreen import lake
from evergreen.errors import ScoringError
from evergreen.gates import Evidence, NoChampion, NotComparable, Verdict, judge
from evergreen.model import Model


@dataclass(frozen=True)
class Champion:
    """The version that held the alias when the run was planned; the run judges against it and no other."""

    version: str
    seen_until: date
    """It has seen no label of this day or later."""

    def has_seen(self, holdout_starts: date) -> str | None:
        """Why it cannot be judged on a holdout that starts on this day; None if it can."""
        if self.seen_until <= holdout_starts:
            return None
        return (
            f"version {self.version} has seen labels until {self.seen_until}, "
            f"the holdout starts {holdout_starts}: it would be judged on what it learned"
        )


def score(folder: Path, table: pa.Table, features: tuple[str, ...]) -> NDArray[np.float64]:
    """Probability of the label for each row of `table`, shape (n,), by the model in `folder`.

    Only formats that cannot run code on loading are known.

    Raises:
        ScoringError: no known model file, unreadable, or the table lacks one of its columns.
    """
    file = folder / "model.ubj"
    if not file.exists():
        raise ScoringError(f"{folder} holds no model.ubj: no model that can be scored")
    if missing := sorted(set(features) - set(table.column_names)):
        raise ScoringError(f"the holdout lacks {', '.join(missing)}, inputs of the model in {folder.name}")
    import xgboost

    try:
        booster = xgboost.Booster(model_file=file)
        data = xgboost.DMatrix(table.select(list(features)).to_pandas())
        return np.asarray(booster.predict(data), dtype=np.float64)
    except (xgboost.core.XGBoostError, ValueError) as error:
        raise ScoringError(f"{file.name} cannot score the holdout: {str(error).splitlines()[0]}") from None


def score_candidate(model: Model, candidate: lake.Manifest, table: pa.Table) -> NDArray[np.float64]:
    """Scores (n,) of `table` by a published candidate.

    Raises:
        ScoringError: as `score`.
    """
    from evergreen.training import local

    with tempfile.TemporaryDirectory() as scratch:
        folder = _candidate_folder(local.dataset(model), candidate, Path(scratch))
        return score(folder, table, tuple(candidate.inputs["features"]))


def evaluate(
    model: Model,
    training_set: lake.Manifest,
    candidate: lake.Manifest,
    champion: Champion | None,
) -> lake.Manifest:
    """Score both models on the file `holdout` of the training set; publish the scores, row by row.

    A champion that cannot be compared (it has seen the holdout, its artifact is gone, it cannot score
    these columns) is evidence too: the reason is published, and blocks.
    """
    from evergreen.store import training_set as training_sets

    inputs = {
        "holdout": training_set.files["holdout"].sha256,
        "candidate": candidate.content,
        "champion": champion.version if champion else None,
        "code": lake.code(("evergreen.evaluation",), ("xgboost-cpu",)),
    }
    mark = lake.fingerprint(inputs)
    target = dataset(model)
    partition = f"{candidate.partition}-against-{champion.version if champion else 'none'}"
    if done := target.published(partition, mark):
        return done
    holdout = pq.read_table(training_sets.dataset(model).path(training_set, "holdout"))
    print(f"scoring {holdout.num_rows} holdout rows", flush=True)
    columns: dict[str, Any] = {"event_timestamp": holdout["event_timestamp"], "label": holdout["label"]}
    columns["candidate"] = score_candidate(model, candidate, holdout)
    problem = None
    if champion:
        problem = champion.has_seen(date.fromisoformat(training_set.inputs["holdout"]))
        if problem is None:
            from evergreen import registry

            try:
                with registry.artifact(model, champion.version) as folder:
                    columns["champion"] = score(folder, holdout, registry.inputs_of(folder))
            except ScoringError as error:
                problem = f"version {champion.version} cannot be scored: {error}"
    staged = target.stage(partition, mark)
    pq.write_table(pa.table(columns), staged / "scores.parquet")
    about = {"champion": champion.version if champion else None, "problem": problem}
    (staged / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    files = {"scores": staged / "scores.parquet", "about": staged / "about.json"}
    return target.publish(partition, mark, files, inputs)


def dataset(model: Model) -> lake.Dataset:
    return lake.dataset(f"evaluations/{model.name}")


def verdict(model: Model, evaluation: lake.Manifest) -> tuple[Verdict, Path]:
    """Judge by the model's gates, and publish the verdict before anything acts on it."""
    source = dataset(model)
    scores = pq.read_table(source.path(evaluation, "scores"))
    about = json.loads(source.path(evaluation, "about").read_text())
    champion = scores["champion"].to_numpy() if about["champion"] and not about["problem"] else None
    shown = evidence(scores["label"].to_numpy(), scores["candidate"].to_numpy(), champion, about["problem"])
    result = judge(model.gates, shown)
    inputs = {
        "evaluation": evaluation.content,
        "gates": [gate.model_dump(mode="json") for gate in model.gates],
        "code": judging_code(),
    }
    mark = lake.fingerprint(inputs)
    target = lake.dataset(f"verdicts/{model.name}")
    manifest = target.published(evaluation.partition, mark)
    if manifest is None:
        staged = target.stage(evaluation.partition, mark) / "verdict.json"
        staged.write_text(result.model_dump_json(indent=1) + "\n")
        manifest = target.publish(evaluation.partition, mark, {"verdict": staged}, inputs)
    return result, target.path(manifest, "verdict")


def evidence(
    label: ArrayLike, candidate: ArrayLike, champion: ArrayLike | None, problem: str | None
) -> Evidence:
    """What the gates are shown: scores of the champion, or the `problem` with it, or that there is none."""
    if problem:
        return Evidence(label, candidate, NotComparable(problem))
    return Evidence(label, candidate, NoChampion() if champion is None else champion)


def judging_code() -> dict[str, str]:
    """What a verdict depends on besides evidence and gates."""
    return lake.code(_GATES, ("numpy",))


_GATES = tuple(
    f"evergreen.gates.{part}" for part in ("spec", "evaluate", "usable", "metrics", "bootstrap", "verdict")
)


def _candidate_folder(source: lake.Dataset, candidate: lake.Manifest, scratch: Path) -> Path:
    """The candidate's files under their own names: a published file is named by its content."""
    for name in candidate.files:
        (scratch / name).symlink_to(source.path(candidate, name).resolve())
    return scratch
