"""Scores, verdicts and measurements of a backtest: computed once, then stored under their fingerprints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen import storage
from evergreen.backtest.statistics import LossTest, ScoredSample, backtest_metric, run_loss_test
from evergreen.backtest.walk_forward import BacktestPoint, MeasurementPeriod
from evergreen.errors import Fault, SpecError
from evergreen.evaluation.labels import compute_labels
from evergreen.evaluation.requirements import EvidenceRequirements, backtest_gates, first_metric_gate, verdict_code
from evergreen.evaluation.rows import (
    LabelCounts,
    compute_clusters,
    compute_groups,
    historical_evidence,
    labelled_periods,
    read_column,
    read_label_counts,
)
from evergreen.feature_store.seasonal_columns import SCALE_COLUMN, SEASONAL_FILE, seasonal_file
from evergreen.gates import EarlierComparison, Evidence, MissingEvidence, NoChampion, Verdict, judge_evidence
from evergreen.gates.forecasts import is_counted, required_columns
from evergreen.gates.metric_rows import RowDetails
from evergreen.gates.metrics import FloatArray
from evergreen.gates.queries import values_by_query
from evergreen.gates.verdict import NotComputedError
from evergreen.lake import datasets, fingerprints
from evergreen.scoring.predictions import SCORING_CODE, Champion, score_candidate
from evergreen.spec.gates import MetricGate
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

_METRIC_FIELDS = {
    "metric",
    "cut",
    "quantile",
    "costs",
    "recall",
    "k",
    "horizon",
    "columns",
    "higher_is_better",
}
_NO_ROWS = ScoredSample(np.empty(0), np.empty(0), np.empty(0))


@dataclass(frozen=True)
class BacktestCandidate:
    """A candidate of the backtest and the training set that it was trained on."""

    training_set: datasets.Manifest
    candidate: datasets.Manifest

    @property
    def point(self) -> BacktestPoint:
        """Its dates."""
        inputs = self.training_set.inputs
        return BacktestPoint(inputs["as_of"], inputs["holdout"], inputs["holdout_end"])


def comparison_gate(model: ModelSpec) -> MetricGate:
    """Return the gate by whose metric policies are compared; a SpecError if none has a metric."""
    if gate := first_metric_gate(model):
        return gate
    fault = Fault("gates", "none has a metric, so a backtest has nothing to measure", "add a threshold gate")
    raise SpecError(f"model {model.name}", [fault])


def scoring_code() -> dict[str, str]:
    """Return what scores depend on besides models and rows."""
    return fingerprints.code_of(SCORING_CODE, ("lightgbm", "numpy", "onnxruntime", "pyarrow", "xgboost-cpu"))


def cache_code(model: ModelSpec) -> dict[str, str]:
    """Return what verdicts and measurements depend on besides models, rows and the spec."""
    return scoring_code() | verdict_code(model) | fingerprints.code_of((__name__,), ("duckdb",))


class BacktestCache:
    """Computes scores, verdicts and metrics of models on holdouts; reads back those that any run computed before."""

    def __init__(self, model: ModelSpec, candidates: Mapping[str, BacktestCandidate], folder: Path):
        self._model, self._candidates, self._folder = model, candidates, folder
        self._as_of_by_end = {candidate.point.holdout_end: as_of for as_of, candidate in candidates.items()}
        self._holdouts: dict[str, pa.Table] = {}
        self._scores: dict[tuple[str, str], FloatArray] = {}
        # Not feature_store.training_sets.training_set_dataset: importing it loads Feast, which takes seconds.
        self._training_sets = datasets.open_dataset(f"training_sets/{model.name}")
        self._gate = comparison_gate(model)
        self._code_fingerprint = fingerprints.compute_fingerprint(cache_code(model))
        self._metric = self._gate.model_dump(mode="json", include=_METRIC_FIELDS)
        prediction = model.prediction_type
        self._prediction_inputs: dict[str, Any] = (
            {"prediction": prediction.model_dump(mode="json"), "query": model.query} if prediction else {}
        )
        if model.weight:
            self._prediction_inputs["weight"] = model.weight
        if model.forecast:
            self._prediction_inputs["forecast"] = model.forecast.model_dump(mode="json")

    def judge(
        self,
        candidate: BacktestPoint,
        champion: BacktestPoint | None,
        past_comparisons: Sequence[EarlierComparison],
        pause: str | None = None,
    ) -> Verdict:
        """Judge by the model's gates, on the candidate's holdout, under the rules of a real retrain.

        `past_comparisons` are those of earlier dates, with the alpha that they spent. Gates about the present only
        (not among `evaluation.backtest_gates`) are left out. During a `pause` nothing is compared with the champion.
        """
        training_set = self._candidates[candidate.as_of].training_set
        inputs = {
            "train": training_set.files["train"].sha256,
            "past": [asdict(comparison) for comparison in past_comparisons],
            **self._cache_inputs(candidate.as_of, candidate.as_of),
            "champion": champion and self._candidate_fingerprint(champion.as_of),
            "champion_seen_until": champion and champion.holdout_start,
            "holdout_starts": candidate.holdout_start,
            "label_counts": training_set.files["label_counts"].sha256,
            "clusters": self._model.clusters,
            "gates": [gate.model_dump(mode="json") for gate in self._model.gates],
            "pause": pause,
        }

        def compute() -> dict[str, Any]:
            champion_scores: Any = NoChampion()
            if champion:
                live = Champion(f"of {champion.as_of}", champion.holdout_start)
                problem = pause or live.overlap_problem(candidate.holdout_start)
                champion_scores = (
                    MissingEvidence(problem) if problem else self._score_holdout(champion.as_of, candidate.as_of)
                )
            gates, _ = backtest_gates(self._model)
            evidence = historical_evidence(
                self._model,
                self._load_holdout(candidate.as_of),
                self._training_sets.file_path(training_set, "train"),
                self._score_holdout(candidate.as_of, candidate.as_of),
                champion_scores,
                self.labelled_periods(candidate.as_of),
                self._label_counts(candidate.as_of),
                self._load_seasonal(candidate.as_of),
            )
            return judge_evidence(gates, evidence, past_comparisons).model_dump(mode="json")

        return Verdict.model_validate(self.cached("verdict", inputs, compute))

    def labelled_periods(self, as_of: str) -> tuple[str, str]:
        """Return the periods first ≤ period < end that a candidate is judged on."""
        calendar = feature_spec(self._model).calendar
        return labelled_periods(self._candidates[as_of].training_set, self._label_counts(as_of), calendar)

    def period_metric(self, model: BacktestPoint, period: MeasurementPeriod) -> float | None:
        """Return the metric of `model` on the labelled rows of `period`."""
        holdout = self._holdout_date(period)
        inputs = {**self._cache_inputs(model.as_of, holdout), "start": period.start, "metric": self._metric}
        return self.cached(
            "metric",
            inputs,
            lambda: backtest_metric(
                self._gate, self._scored_rows(model, period.start, holdout), self._model.prediction_type
            ),
        )

    def loss_test(self, model: BacktestPoint, period: MeasurementPeriod) -> LossTest | None:
        """Compare `model` in `period` with itself on its own holdout."""
        holdout = self._holdout_date(period)
        inputs = {
            **self._cache_inputs(model.as_of, holdout),
            "own_holdout": self._holdout_fingerprint(model.as_of),
            "start": period.start,
            "metric": self._metric,
        }

        def compute() -> dict[str, Any] | None:
            holdout_sample = self._scored_rows(model, model.holdout_start, model.as_of)
            recent_sample = self._scored_rows(model, period.start, holdout)
            test = run_loss_test(self._gate, holdout_sample, recent_sample, self._model.prediction_type)
            return asdict(test) if test else None

        stored = self.cached("loss", inputs, compute)
        return stored and LossTest(**stored)

    def count_rows(self, period: MeasurementPeriod) -> dict[str, Any]:
        """Return the number of labelled `rows` in a period, and among them the `positive_share` of label 1."""
        holdout = self._holdout_date(period)
        fingerprint = self._holdout_fingerprint(holdout)
        inputs = {"holdout": fingerprint, "start": period.start, "code": self._code_fingerprint}
        inputs |= self._prediction_inputs

        def compute() -> dict[str, Any]:
            label, _ = self._labels_from(period.start, holdout)
            has_share = label.size and self._model.kind in (None, "binary")
            return {"rows": label.size, "positive_share": float(label.mean()) if has_share else None}

        return self.cached("rows", inputs, compute)

    def _holdout_date(self, period: MeasurementPeriod) -> str:
        """Return the date whose holdout has the rows of `period`."""
        return self._as_of_by_end[period.end]

    def _label_counts(self, as_of: str) -> LabelCounts:
        training_set = self._candidates[as_of].training_set
        return read_label_counts(self._training_sets.file_path(training_set, "label_counts"))

    def _scored_rows(self, model: BacktestPoint, start: str, holdout: str) -> ScoredSample:
        """Return the rows of the holdout of a date, from the period `start` on.

        Of a ranking, they are those of queries (`evergreen.gates.queries`); of a forecast, those that the gate counts,
        as it counts them.
        """
        label, rows = self._labels_from(start, holdout)
        table = self._load_holdout(holdout)
        scores, days = self._score_holdout(model.as_of, holdout)[rows], table["day"].to_numpy()[rows]
        if self._model.query is None:
            weight = self._model.weight
            weights = table[weight].to_numpy()[rows].astype(np.float64) if weight else None
            try:
                details = self._row_details(table, rows, scores)
            except NotComputedError:  # the verdict says why
                return _NO_ROWS
            sample = ScoredSample(label, scores, days, weights, details)
            return self._count_forecasts(sample, table, rows, holdout) if self._model.forecast else sample
        queries = compute_clusters(table, [self._model.query])[self._model.query]
        if isinstance(queries, MissingEvidence) or None in queries:  # the verdict says why
            return _NO_ROWS
        return ScoredSample(*values_by_query(self._gate, label, scores, np.asarray(queries, dtype=str)[rows], days))

    def _row_details(self, table: pa.Table, rows: Any, scores: FloatArray) -> RowDetails | None:
        """Return what a metric of the model folder may ask for; the model itself is the candidate there."""
        if ":" not in self._gate.metric:
            return None
        chosen = pa.array(rows)
        columns = {name: read_column(table.filter(chosen), name) for name in self._gate.columns}
        # Of the whole holdout, as verdicts have them: an expression may look at other rows.
        by_name = compute_groups(table, EvidenceRequirements.from_gates(self._model.gates, ()).groups)
        groups = {
            name: pa.array(names, pa.string()).filter(chosen).to_pylist()
            for name, names in by_name.items()
            if not isinstance(names, MissingEvidence)  # the verdict says why
        }
        evidence = Evidence(label=(), candidate=scores, champion=NoChampion(), columns=columns, groups=groups)
        return RowDetails.from_evidence(self._gate, evidence, len(scores))

    def _count_forecasts(self, sample: ScoredSample, table: pa.Table, rows: Any, holdout: str) -> ScoredSample:
        """Return what the gate counts of the `rows` of a holdout, with labels and scores in the unit of the metric."""
        assert self._model.forecast
        columns = {}
        for name in required_columns(self._gate):
            if name == "horizons":
                column = table[self._model.forecast.horizon]
            elif seasonal := self._load_seasonal(holdout):
                column = seasonal[SCALE_COLUMN]
            else:  # the verdict says why
                return _NO_ROWS
            columns[name] = column.to_numpy()[rows].astype(np.float64)
        if not columns:
            return sample
        counted = is_counted(self._gate, columns)
        scale = columns["scales"][counted] if "scales" in columns else 1.0
        label, scores = sample.label[counted] / scale, sample.score[counted] / scale
        weights = None if sample.weights is None else sample.weights[counted]
        details = sample.details and sample.details.take(counted)
        return ScoredSample(label, scores, np.asarray(sample.days)[counted], weights, details)

    def _labels_from(self, start: str, holdout: str) -> tuple[FloatArray, Any]:
        """Return labels of the rows of a holdout from the period `start` on, and the mask (n,) of these rows."""
        table = self._load_holdout(holdout)
        if datasets.PERIOD_COLUMN in table.column_names:
            rows = table[datasets.PERIOD_COLUMN].to_numpy() >= start
        else:
            rows = table["day"].to_numpy() >= np.datetime64(start)
        label = compute_labels(table["label"], self._model.prediction_type)
        if isinstance(label, MissingEvidence):  # nothing can be measured; the verdict says why
            label = np.full(table.num_rows, np.nan)
        return label[rows].astype(np.float64), rows

    def _score_holdout(self, model: str, holdout: str) -> FloatArray:
        """Return the predictions for every row of a holdout."""
        if (model, holdout) not in self._scores:
            inputs = {**self._cache_inputs(model, holdout), "code": scoring_code()}
            file = self._folder / f"scores-{fingerprints.compute_fingerprint(inputs)[:32]}.npy"
            if not file.exists():
                candidate = self._candidates[model].candidate
                scores = score_candidate(self._model, candidate, self._load_holdout(holdout))
                with storage.atomic_write(file) as scratch, scratch.open("wb") as stream:
                    np.save(stream, scores, allow_pickle=False)
            self._scores[model, holdout] = np.load(file, allow_pickle=False)
        return self._scores[model, holdout]

    def _load_seasonal(self, as_of: str) -> pa.Table | None:
        """Return the naive forecasts of a holdout; None of models of another kind."""
        file = seasonal_file(self._training_sets, self._candidates[as_of].training_set)
        return pq.read_table(file) if file else None

    def _load_holdout(self, as_of: str) -> pa.Table:
        if as_of not in self._holdouts:
            file = self._training_sets.file_path(self._candidates[as_of].training_set, "holdout")
            self._holdouts[as_of] = pq.read_table(file)
        return self._holdouts[as_of]

    def _cache_inputs(self, model: str, holdout: str) -> dict[str, Any]:
        return {
            "model": self._candidate_fingerprint(model),
            "holdout": self._holdout_fingerprint(holdout),
            "code": self._code_fingerprint,
            **self._prediction_inputs,
            **self._seasonal_inputs(holdout),
        }

    def _seasonal_inputs(self, as_of: str) -> dict[str, Any]:
        files = self._candidates[as_of].training_set.files
        return {"seasonal": files[SEASONAL_FILE].sha256} if self._model.forecast and SEASONAL_FILE in files else {}

    def _candidate_fingerprint(self, as_of: str) -> dict[str, Any]:
        candidate = self._candidates[as_of].candidate
        return {"content": candidate.content_hash, "features": candidate.inputs["features"]}

    def _holdout_fingerprint(self, as_of: str) -> str:
        return self._candidates[as_of].training_set.files["holdout"].sha256

    def cached(self, kind: str, inputs: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Return the JSON value that `compute` returned the first time it was called with these inputs."""
        file = self._folder / f"{kind}-{fingerprints.compute_fingerprint(inputs)[:32]}.json"
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            text = json.dumps(compute())
            with storage.atomic_write(file) as scratch:
                scratch.write_text(text)
            return json.loads(text)
