"""Scores, verdicts and measurements of a backtest: each computed once, then kept under its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from evergreen import storage
from evergreen.backtest.statistics import Fall, fall, measure
from evergreen.backtest.walk_forward import Period, Point
from evergreen.errors import Fault, SpecError
from evergreen.gates import Comparison, Missing, NoChampion, Verdict, judge
from evergreen.gates.metrics import Floats
from evergreen.lake import datasets, fingerprints
from evergreen.spec.gates import Measured
from evergreen.spec.model import Model

# What of it makes evidence about the past.
EVALUATION = tuple(
    f"evergreen.evaluation.{part}" for part in ("asked", "past", "predictors", "rows", "scoring")
)


@dataclass(frozen=True)
class Candidate:
    """What a point of the backtest holds."""

    training_set: datasets.Manifest
    candidate: datasets.Manifest

    @property
    def point(self) -> Point:
        about = self.training_set.inputs
        return Point(date.fromisoformat(about["as_of"]), date.fromisoformat(about["holdout"]))


@dataclass(frozen=True)
class Holdout:
    """Labelled rows, (n,) each: `day` as days since 1970."""

    table: Any
    label: Floats
    day: Any


def measured_by(model: Model) -> Measured:
    """The first gate that is about a metric: by this metric the walk compares policies.

    Raises:
        SpecError: there is none.
    """
    for gate in model.gates:
        if isinstance(gate, Measured) and gate.metric != "positive_rate":
            return gate
    fault = Fault("gates", "none is about a metric, so a backtest has nothing to measure", "add a threshold")
    raise SpecError(f"model {model.name}", [fault])


class Findings:
    """Answers about pairs of models and holdouts; those that were asked before, by any run, are read back."""

    def __init__(self, model: Model, candidates: Mapping[date, Candidate], folder: Path):
        self._model, self._candidates, self._folder = model, candidates, folder
        self._holdouts: dict[date, Holdout] = {}
        self._scores: dict[tuple[date, date], Floats] = {}
        self._gate = measured_by(model)
        self._metric = self._gate.model_dump(mode="json", include={"metric", "cut", "quantile"})

    def verdict(self, candidate: Point, champion: Point | None, past: Sequence[Comparison]) -> Verdict:
        """By the model's own gates, on the candidate's own holdout, under the rules of a real retrain.

        `past` is what the comparisons of earlier dates have spent. Gates that can only be held against the present
        (`evaluation.backtest_gates`) are left out.
        """
        held = self._candidates[candidate.as_of].training_set
        inputs = {
            "train": held.files["train"].sha256,
            "past": [asdict(comparison) for comparison in past],
            **self._pair(candidate.as_of, candidate.as_of),
            "champion": champion and self._model_of(champion.as_of),
            "champion_seen_until": champion and champion.holdout,
            "holdout_starts": candidate.holdout,
            "gates": [gate.model_dump(mode="json") for gate in self._model.gates],
        }
        return Verdict.model_validate(
            self._kept(
                "verdict", inputs, lambda: self._judge(candidate, champion, past).model_dump(mode="json")
            )
        )

    def measured(self, model: Point, period: Period) -> float | None:
        """The metric of `model` on the labelled rows of `period`."""
        inputs = {**self._pair(model.as_of, period.end), "start": period.start, "metric": self._metric}
        return self._kept(
            "metric", inputs, lambda: measure(self._gate, *self._rows(model, period.start, period.end))
        )

    def fall(self, model: Point, period: Period) -> Fall | None:
        """How `model` did in `period`, compared with its own holdout when it was deployed."""
        inputs = {
            **self._pair(model.as_of, period.end),
            "own_holdout": self._holdout_of(model.as_of),
            "start": period.start,
            "metric": self._metric,
        }

        def compare() -> dict[str, Any] | None:
            then = self._rows(model, model.holdout, model.as_of)
            found = fall(self._gate, then, self._rows(model, period.start, period.end))
            return asdict(found) if found else None

        kept = self._kept("fall", inputs, compare)
        return kept and Fall(**kept)

    def rows(self, period: Period) -> tuple[int, float | None]:
        """How many labelled rows a period has, and the share of label 1."""
        inputs = {"holdout": self._holdout_of(period.end), "start": period.start, "code": self._code}

        def count() -> tuple[int, float | None]:
            label = self._holdout(period.end).label[self._from(period.start, period.end)]
            return label.size, float(label.mean()) if label.size else None

        number, share = self._kept("rows", inputs, count)
        return number, share

    def _judge(self, candidate: Point, champion: Point | None, past: Sequence[Comparison]) -> Verdict:
        from evergreen import evaluation

        theirs: Any = NoChampion()
        if champion:
            named = evaluation.Champion(f"of {champion.as_of}", champion.holdout)
            problem = named.has_seen(candidate.holdout)
            theirs = Missing(problem) if problem else self._score(champion.as_of, candidate.as_of)
        gates, _ = evaluation.backtest_gates(self._model)
        shown = evaluation.past_evidence(
            self._model,
            self._holdout(candidate.as_of).table,
            self._training_sets.path(self._candidates[candidate.as_of].training_set, "train"),
            self._score(candidate.as_of, candidate.as_of),
            theirs,
            (candidate.holdout, candidate.as_of),
        )
        return judge(gates, shown, past)

    @property
    def _training_sets(self) -> datasets.Dataset:
        # Named here, not asked of store.training_set: that loads Feast, seconds for a name.
        return datasets.dataset(f"training_sets/{self._model.name}")

    def _rows(self, model: Point, start: date, end: date) -> tuple[Floats, Floats]:
        """Labels and scores of the rows of `end`'s holdout, from the day `start` on."""
        wanted = self._from(start, end)
        return self._holdout(end).label[wanted], self._score(model.as_of, end)[wanted]

    def _from(self, start: date, end: date) -> Any:
        return self._holdout(end).day >= (start - date(1970, 1, 1)).days

    def _score(self, model: date, holdout: date) -> Floats:
        """Scores (n,) of every row of a holdout."""
        import numpy as np

        from evergreen import evaluation

        if (model, holdout) not in self._scores:
            inputs = self._pair(model, holdout)
            file = self._folder / f"scores-{fingerprints.fingerprint(inputs)[:32]}.npy"
            if not file.exists():
                candidate = self._candidates[model].candidate
                scores = evaluation.score_candidate(self._model, candidate, self._holdout(holdout).table)
                with storage.replacing(file) as scratch, scratch.open("wb") as stream:
                    np.save(stream, scores, allow_pickle=False)
            self._scores[model, holdout] = np.load(file, allow_pickle=False)
        return self._scores[model, holdout]

    def _holdout(self, as_of: date) -> Holdout:
        if as_of not in self._holdouts:
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pq.read_table(self._training_sets.path(self._candidates[as_of].training_set, "holdout"))
            self._holdouts[as_of] = Holdout(
                table,
                table["label"].to_numpy().astype("float64"),
                table["day"].cast(pa.int32()).to_numpy(),
            )
        return self._holdouts[as_of]

    def _pair(self, model: date, holdout: date) -> dict[str, Any]:
        return {
            "model": self._model_of(model),
            "holdout": self._holdout_of(holdout),
            "code": self._code,
        }

    def _model_of(self, as_of: date) -> dict[str, Any]:
        candidate = self._candidates[as_of].candidate
        return {"content": candidate.content, "features": candidate.inputs["features"]}

    def _holdout_of(self, as_of: date) -> str:
        return self._candidates[as_of].training_set.files["holdout"].sha256

    @cached_property
    def _code(self) -> str:
        from evergreen import evaluation

        own = ("evergreen.backtest.cache", "evergreen.backtest.statistics", *EVALUATION)
        return fingerprints.fingerprint(
            [
                fingerprints.code(own, ("onnxruntime", "xgboost-cpu")),
                evaluation.judging_code(self._model.gates),
            ]
        )

    def _kept(self, kind: str, inputs: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What `make` gives, JSON-like, from the first time it was asked with these inputs."""
        file = self._folder / f"{kind}-{fingerprints.fingerprint(inputs)[:32]}.json"
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            text = json.dumps(make())
            with storage.replacing(file) as scratch:
                scratch.write_text(text)
            return json.loads(text)
