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
from evergreen.backtest.statistics import DriftTest, backtest_metric, run_drift_test
from evergreen.backtest.walk_forward import BacktestPoint, MeasurementPeriod
from evergreen.errors import Fault, SpecError
from evergreen.gates import EarlierComparison, MissingEvidence, NoChampion, Verdict, judge_evidence
from evergreen.gates.metrics import FloatArray
from evergreen.lake import datasets, fingerprints
from evergreen.spec.gates import MetricGate
from evergreen.spec.model import ModelSpec

# What of it makes evidence about the past.
EVALUATION = tuple(f"evergreen.evaluation.{part}" for part in ("asked", "past", "predictors", "rows", "scoring"))


@dataclass(frozen=True)
class BacktestCandidate:
    """What a point of the backtest holds."""

    training_set: datasets.Manifest
    candidate: datasets.Manifest

    @property
    def point(self) -> BacktestPoint:
        about = self.training_set.inputs
        return BacktestPoint(date.fromisoformat(about["as_of"]), date.fromisoformat(about["holdout"]))


@dataclass(frozen=True)
class HoldoutRows:
    """Labelled rows, (n,) each: `day` as days since 1970."""

    table: Any
    label: FloatArray
    day: Any


def first_metric_gate(model: ModelSpec) -> MetricGate:
    """The first gate that is about a metric: by this metric the walk compares policies.

    Raises:
        SpecError: there is none.
    """
    for gate in model.gates:
        if isinstance(gate, MetricGate) and gate.metric != "positive_rate":
            return gate
    fault = Fault("gates", "none is about a metric, so a backtest has nothing to measure", "add a threshold")
    raise SpecError(f"model {model.name}", [fault])


class BacktestCache:
    """Answers about pairs of models and holdouts; those that were asked before, by any run, are read back."""

    def __init__(self, model: ModelSpec, candidates: Mapping[date, BacktestCandidate], folder: Path):
        self._model, self._candidates, self._folder = model, candidates, folder
        self._holdouts: dict[date, HoldoutRows] = {}
        self._scores: dict[tuple[date, date], FloatArray] = {}
        self._gate = first_metric_gate(model)
        self._metric = self._gate.model_dump(mode="json", include={"metric", "cut", "quantile"})

    def judge(
        self,
        candidate: BacktestPoint,
        champion: BacktestPoint | None,
        past_comparisons: Sequence[EarlierComparison],
    ) -> Verdict:
        """By the model's own gates, on the candidate's own holdout, under the rules of a real retrain.

        `past` is what the comparisons of earlier dates have spent. Gates that can only be held against the present
        (`evaluation.backtest_gates`) are left out.
        """
        held = self._candidates[candidate.as_of].training_set
        inputs = {
            "train": held.files["train"].sha256,
            "past": [asdict(comparison) for comparison in past_comparisons],
            **self._cache_inputs(candidate.as_of, candidate.as_of),
            "champion": champion and self._candidate_fingerprint(champion.as_of),
            "champion_seen_until": champion and champion.holdout_start,
            "holdout_starts": candidate.holdout_start,
            "gates": [gate.model_dump(mode="json") for gate in self._model.gates],
        }
        return Verdict.model_validate(
            self._cached(
                "verdict",
                inputs,
                lambda: self._judge(candidate, champion, past_comparisons).model_dump(mode="json"),
            )
        )

    def period_metric(self, model: BacktestPoint, period: MeasurementPeriod) -> float | None:
        """The metric of `model` on the labelled rows of `period`."""
        inputs = {
            **self._cache_inputs(model.as_of, period.end),
            "start": period.start,
            "metric": self._metric,
        }
        return self._cached(
            "metric",
            inputs,
            lambda: backtest_metric(self._gate, *self._labels_and_scores(model, period.start, period.end)),
        )

    def drift_test(self, model: BacktestPoint, period: MeasurementPeriod) -> DriftTest | None:
        """How `model` did in `period`, compared with its own holdout when it was deployed."""
        inputs = {
            **self._cache_inputs(model.as_of, period.end),
            "own_holdout": self._holdout_fingerprint(model.as_of),
            "start": period.start,
            "metric": self._metric,
        }

        def compare() -> dict[str, Any] | None:
            then = self._labels_and_scores(model, model.holdout_start, model.as_of)
            found = run_drift_test(self._gate, then, self._labels_and_scores(model, period.start, period.end))
            return asdict(found) if found else None

        kept = self._cached("fall", inputs, compare)
        return kept and DriftTest(**kept)

    def count_rows(self, period: MeasurementPeriod) -> tuple[int, float | None]:
        """How many labelled rows a period has, and the share of label 1."""
        inputs = {
            "holdout": self._holdout_fingerprint(period.end),
            "start": period.start,
            "code": self._code_fingerprint,
        }

        def count() -> tuple[int, float | None]:
            label = self._load_holdout(period.end).label[self._rows_from(period.start, period.end)]
            return label.size, float(label.mean()) if label.size else None

        number, share = self._cached("rows", inputs, count)
        return number, share

    def _judge(
        self,
        candidate: BacktestPoint,
        champion: BacktestPoint | None,
        past_comparisons: Sequence[EarlierComparison],
    ) -> Verdict:
        from evergreen import evaluation

        theirs: Any = NoChampion()
        if champion:
            named = evaluation.Champion(f"of {champion.as_of}", champion.holdout_start)
            problem = named.overlap_problem(candidate.holdout_start)
            theirs = MissingEvidence(problem) if problem else self._score_holdout(champion.as_of, candidate.as_of)
        gates, _ = evaluation.backtest_gates(self._model)
        shown = evaluation.historical_evidence(
            self._model,
            self._load_holdout(candidate.as_of).table,
            self._training_sets.file_path(self._candidates[candidate.as_of].training_set, "train"),
            self._score_holdout(candidate.as_of, candidate.as_of),
            theirs,
            (candidate.holdout_start, candidate.as_of),
        )
        return judge_evidence(gates, shown, past_comparisons)

    @property
    def _training_sets(self) -> datasets.Dataset:
        # Named here, not asked of store.training_set: that loads Feast, seconds for a name.
        return datasets.open_dataset(f"training_sets/{self._model.name}")

    def _labels_and_scores(self, model: BacktestPoint, start: date, end: date) -> tuple[FloatArray, FloatArray]:
        """Labels and scores of the rows of `end`'s holdout, from the day `start` on."""
        wanted = self._rows_from(start, end)
        return self._load_holdout(end).label[wanted], self._score_holdout(model.as_of, end)[wanted]

    def _rows_from(self, start: date, end: date) -> Any:
        return self._load_holdout(end).day >= (start - date(1970, 1, 1)).days

    def _score_holdout(self, model: date, holdout: date) -> FloatArray:
        """Scores (n,) of every row of a holdout."""
        import numpy as np

        from evergreen import evaluation

        if (model, holdout) not in self._scores:
            inputs = self._cache_inputs(model, holdout)
            file = self._folder / f"scores-{fingerprints.compute_fingerprint(inputs)[:32]}.npy"
            if not file.exists():
                candidate = self._candidates[model].candidate
                scores = evaluation.score_candidate(self._model, candidate, self._load_holdout(holdout).table)
                with storage.atomic_write(file) as scratch, scratch.open("wb") as stream:
                    np.save(stream, scores, allow_pickle=False)
            self._scores[model, holdout] = np.load(file, allow_pickle=False)
        return self._scores[model, holdout]

    def _load_holdout(self, as_of: date) -> HoldoutRows:
        if as_of not in self._holdouts:
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pq.read_table(self._training_sets.file_path(self._candidates[as_of].training_set, "holdout"))
            self._holdouts[as_of] = HoldoutRows(
                table,
                table["label"].to_numpy().astype("float64"),
                table["day"].cast(pa.int32()).to_numpy(),
            )
        return self._holdouts[as_of]

    def _cache_inputs(self, model: date, holdout: date) -> dict[str, Any]:
        return {
            "model": self._candidate_fingerprint(model),
            "holdout": self._holdout_fingerprint(holdout),
            "code": self._code_fingerprint,
        }

    def _candidate_fingerprint(self, as_of: date) -> dict[str, Any]:
        candidate = self._candidates[as_of].candidate
        return {"content": candidate.content_hash, "features": candidate.inputs["features"]}

    def _holdout_fingerprint(self, as_of: date) -> str:
        return self._candidates[as_of].training_set.files["holdout"].sha256

    @cached_property
    def _code_fingerprint(self) -> str:
        from evergreen import evaluation

        own = ("evergreen.backtest.cache", "evergreen.backtest.statistics", *EVALUATION)
        return fingerprints.compute_fingerprint(
            [
                fingerprints.code_versions(own, ("onnxruntime", "xgboost-cpu")),
                evaluation.judging_code(self._model.gates),
            ]
        )

    def _cached(self, kind: str, inputs: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What `make` gives, JSON-like, from the first time it was asked with these inputs."""
        file = self._folder / f"{kind}-{fingerprints.compute_fingerprint(inputs)[:32]}.json"
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            text = json.dumps(compute())
            with storage.atomic_write(file) as scratch:
                scratch.write_text(text)
            return json.loads(text)
