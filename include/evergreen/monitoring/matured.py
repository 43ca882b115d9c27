"""Publishes how the champion of then did in each period whose labels have matured, as sums that add up.

    performance/flight_delay/                    a dataset
        _manifests/day=2013-03-01.json           of a period: the sums of each metric, by what was predicted then
        _manifests/holdout=3f9a….json            of a champion: the same of each day of its holdout

What was predicted is what `<model>.score` has published, or else what the champion in force predicts for the rows as it
would have got them. A period is measured again when its labels or predictions are others: it says then what it showed
before, and why that has changed. Only such periods, and new ones, cost something.
"""
# ruff: noqa: S608 - names are quoted or made here, and literals are quoted

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow.parquet as pq
from pydantic import Field

from evergreen.errors import DatasetError, EvergreenError, ScoringError, first_line
from evergreen.evaluation.collect import evaluation_dataset, load_evidence
from evergreen.evaluation.requirements import first_metric_gate
from evergreen.features.inputs import features_dataset, published_manifests
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.streams import iter_numbers
from evergreen.gates.verdict import NotComputedError
from evergreen.ingest.databases import open_database, parquet_rows, quote_name, quote_text
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.ledger import ChampionTenure, LedgerState, VerdictRecorded, VersionPromoted
from evergreen.monitoring.daily_metrics import DailySums, is_of_user_code, metric_of_sums, sum_by_day, sum_rows
from evergreen.monitoring.period_records import publish_period_record, read_period_record
from evergreen.monitoring.period_rows import InForce, RegisteredModels, open_period
from evergreen.spec import Frozen, NonEmptyStr, Period
from evergreen.spec.gates import AgainstChampionGate, MetricGate
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.storage import Sha256

PROBABILITY_BINS = 10
"""Of probabilities, of equal width."""

MEASURING_SECONDS = 600.0
"""After which a run begins with no further period."""

MAX_REVISIONS = 20
"""Of a period: the newest ones are kept."""

NOT_FINITE = "its sums are not finite"
"""The end of a problem of a metric."""

OTHER_METRIC = "was another metric when this was measured: it is left out"
"""The end of a problem of a period."""

PAIR_PREFIX = "pair="
"""Of the partitions with how two champions did on the same rows (`paired_periods`)."""

_PERFORMANCE = "performance"
_HOLDOUT_PREFIX, _DIGITS = "holdout=", 16
# Of a gate, what its metric is. Limits and what else it decides by are not among it.
_METRIC_FIELDS = MetricGate.model_fields.keys() - {"kind", "name", "min_rows"}
# What sums are computed by; the modules that they import decide gates, and change more often.
_METRIC_MODULES = (
    "evergreen.monitoring.daily_metrics",
    *(
        f"evergreen.gates.{name}"
        for name in ("forecasts", "judged_rows", "metric_rows", "metrics", "queries", "score_bins", "streams")
    ),
)

log = logging.getLogger(__name__)


class Revision(Frozen, allow_inf_nan=False):
    """What a period showed before it was measured again, and why that has changed."""

    as_of: Period = Field(description="the run that found it knew the data until this period, exclusively")
    reason: NonEmptyStr
    labelled: int = Field(description="rows with a label, before")
    values: Mapping[str, float] = Field(description="by metric, before")


class PeriodPerformance(Frozen, allow_inf_nan=False):
    """How a champion did in a period, by the labels that were known."""

    period: Period
    champion_version: NonEmptyStr
    champion_content: Sha256
    is_published: bool = Field(description="whether its predictions are those that were published then")
    rows: int = Field(description="examples of the period")
    labelled: int = Field(description="those that are measured: with a label that was known, and a prediction")
    sums: Mapping[str, tuple[float, ...]] = Field(description="of each metric, by the gate's name (`daily_metrics`)")
    calibration: tuple[tuple[float, float, float], ...] = Field(
        (), description="of probabilities, by bin: rows, and the sums of predictions and of labels"
    )
    problems: tuple[str, ...] = ()
    revisions: tuple[Revision, ...] = ()


class MeasuredPeriods(NamedTuple):
    """What a run has measured or read.

    Attributes:
        performance: by period, by the labels that the run knows.
        published: what is published of these periods.
        problems: what is not known, and why.
    """

    performance: Mapping[str, PeriodPerformance] = {}
    published: Mapping[str, tuple[Manifest, PeriodPerformance]] = {}
    problems: Sequence[str] = ()


class LabelState(NamedTuple):
    """The labels of a period's examples, as far as they were known.

    Attributes:
        rows: examples.
        labelled: those with a known label.
        known_until: the last instant at which one of these was known; None without any.
        pending: the first instant at which a further one will be known; None if none will.
        row_digest: of the labelled rows, whatever their labels; equal for equal rows in any order.
        label_digest: of the same with their labels.
    """

    rows: int
    labelled: int
    known_until: str | None
    pending: str | None
    row_digest: str
    label_digest: str


def monitored_gates(model: ModelSpec) -> tuple[MetricGate, ...]:
    """Return the gates by whose metrics a champion is watched: those that compare with it, or else the first one."""
    compared = tuple(gate for gate in model.gates if isinstance(gate, AgainstChampionGate))
    first = first_metric_gate(model)
    return compared or ((first,) if first else ())


def performance_dataset(model: str) -> Dataset:
    """Return the dataset of how a model's champions did."""
    return datasets.open_dataset(f"performance/{model}")


class MaturedPeriods:
    """The periods before `end` whose labels should be known, and what is published of them.

    Those are looked at that began within the label delay before the champion was promoted, or later: labels that come
    later still change nothing.
    """

    def __init__(self, model: ModelSpec, state: LedgerState, end: str):
        self.problems = list[str]()
        self.published = dict[str, tuple[Manifest, PeriodPerformance]]()
        """What is published of the periods that `measure_new` returns."""
        self._model, self._state, self._end = model, state, end
        self._calendar = feature_spec(model).calendar
        self._known_before = self._calendar.start(end)
        self._gates = {gate.name: gate for gate in monitored_gates(model)}
        self._tenures = list(_tenure_starts(state))
        self._dataset = performance_dataset(model.name)
        self._metrics, self._code = describe_metrics(model), metrics_code()

    def measure_new(
        self, *, is_preview: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> dict[str, PeriodPerformance]:
        """Measure the periods that are new, or whose labels or predictions are others, and return all, by period.

        Those that were never measured come first, and of these the newest one. After `MEASURING_SECONDS` no further one
        begins. What fails of one period is added to `problems`, and the others are measured nevertheless.

        Args:
            is_preview: labels that were known later are left out, and what is published stays. Only what no later
                label can change is published.
            clock: returns seconds.
        """
        start, calendar = self._tenures[-1][0], self._calendar
        first = max(calendar.period_before(start, self._model.label_delay), self._tenures[0][0])
        matured = list(calendar.periods_between(first, calendar.period_before(self._end, self._model.label_delay)))
        features = published_manifests(self._model, matured)
        # What was measured stays when its features expire.
        existing = {*features, *map(datasets.partition_period, _period_partitions(self._dataset, first))}
        if absent := [period for period in matured if period not in existing and period < max(features, default="")]:
            self.problems.append(f"performance: {calendar.describe(absent)}: no features are published")
        predicted = _by_period(datasets.open_dataset(f"predictions/{self._model.name}"), features)
        published, measured = _by_period(self._dataset, features), dict[str, PeriodPerformance]()
        failed, due = dict[str, list[str]](), dict[str, tuple[InForce, dict[str, Any]]]()
        for period, manifest in features.items():
            try:
                if period in published:
                    measured[period] = _read_performance(self._dataset, published[period], self._metrics)
                    self.published[period] = published[period], measured[period]
            except DatasetError as error:
                failed.setdefault(str(error), []).append(period)
            model = self._model_in_force(period, predicted.get(period), measured.get(period))
            inputs = self._inputs(manifest, model)
            is_unreadable = period in published and period not in measured
            if period not in published or is_unreadable or self._is_due(published[period], inputs, is_preview):
                due[period] = model, inputs
        # What fails again and again does not keep others from being measured.
        order = sorted(sorted(due, reverse=True), key=lambda period: period in published)
        begun = clock()
        with RegisteredModels(self._model) as models:
            for number, period in enumerate(order):
                if clock() - begun >= MEASURING_SECONDS:
                    waiting = len(order) - number
                    periods = "1 more period is" if waiting == 1 else f"{waiting:,} more periods are"
                    self.problems.append(f"performance: {periods} measured by the next runs")
                    break
                model, inputs = due[period]
                try:
                    if model.predictions is None:
                        models.open(model.content)  # before rows are joined for it
                    earlier = published.get(period)
                    measured[period] = self._measure(
                        period, features[period], model, inputs, earlier, models, is_preview, measured.get(period)
                    )
                except Exception as error:  # of any class: files, features, libraries of models
                    if not isinstance(error, EvergreenError):
                        log.warning("%s cannot be measured", period, exc_info=error)
                    problem = f"version {model.version} cannot be measured: {first_line(error)}"
                    failed.setdefault(problem, []).append(period)
        for period in sorted(measured):
            for problem in measured[period].problems:
                failed.setdefault(problem, []).append(period)
        unlabelled = [period for period, performance in measured.items() if not performance.labelled]
        self.problems += [f"performance: {calendar.describe(periods)}: {text}" for text, periods in failed.items()]
        if unlabelled:
            self.problems.append(f"performance: {calendar.describe(unlabelled)}: no row has a known label")
        return {period: measured[period] for period in sorted(measured)}

    def _model_in_force(
        self, period: str, predictions: Manifest | None, measurement: PeriodPerformance | None
    ) -> InForce:
        """Return whose predictions a period had: those published, those measured before, or by the ledger's periods."""
        if predictions:
            made_by = predictions.inputs["model"]
            return InForce(made_by["version"], made_by["content"], predictions)
        if measurement and not measurement.is_published:
            return InForce(measurement.champion_version, measurement.champion_content)
        tenure = next((tenure for start, tenure in reversed(self._tenures) if start <= period), self._tenures[0][1])
        return InForce(self._state.name_of(tenure.content, tenure.version), tenure.content)

    def _inputs(self, features: Manifest, model: InForce) -> dict[str, Any]:
        return {
            "features": features.content_hash,
            "model": model.content,
            "predictions": model.predictions.content_hash if model.predictions else None,
            "metrics": self._metrics,
            "code": self._code,
        }

    def _is_due(self, published: Manifest, inputs: Mapping[str, Any], is_preview: bool) -> bool:
        if is_preview:  # a day of the past: were some labels known later?
            known_until = published.inputs["labels"]["known_until"]
            return bool(known_until and datetime.fromisoformat(known_until) >= self._known_before)
        if published.inputs["predictions"] and not inputs["predictions"]:
            return False  # they have expired
        pending = published.inputs["labels"]["pending"]
        has_new = pending is not None and datetime.fromisoformat(pending) < self._known_before
        return (
            has_new
            or bool(_failed(published))
            or any(published.inputs[name] != value for name, value in inputs.items())
        )

    def _measure(
        self,
        period: str,
        features: Manifest,
        model: InForce,
        inputs: dict[str, Any],
        published: Manifest | None,
        models: RegisteredModels,
        is_preview: bool,
        earlier_performance: PeriodPerformance | None,
    ) -> PeriodPerformance:
        """Measure a period, and publish that. `earlier_performance` is what is `published`, if it can be read."""
        table = feature_spec(self._model).spine
        if table not in features.files:
            raise ScoringError(f"the features have no table {table}")
        spine = features_dataset(self._model).file_path(features, table)
        if absent := {self._model.label, "label_known_at"} - set(pq.read_schema(spine).names):
            raise ScoringError(f"the table {table} has no column {' and no '.join(sorted(absent))}")
        since = published.inputs["labels"]["known_until"] if published else None
        known_before = self._known_before
        if since and not is_preview:  # a run for an earlier day forgets no label
            known_before = max(known_before, datetime.fromisoformat(since) + timedelta(microseconds=1))
        with open_database() as database:
            labels = read_labels(database, spine, self._model.label, known_before)
            earlier = _digests_until(database, spine, self._model.label, since) if since else None
        performance, failed = self._compute(period, model, labels, models, known_before)
        if is_preview and (published or labels.pending):
            return performance
        revisions = earlier_performance.revisions if earlier_performance else ()
        if published and earlier_performance:
            now = {**inputs, "labels": labels._asdict()}
            # Of another metric, and of one whose function failed, there is nothing to compare with.
            incomparable = {
                name
                for name in self._gates
                if published.inputs["metrics"].get(name) != self._metrics[name]
                or name in {*failed, *_failed(published)}
            }
            shown_before, shown_now = (
                (item.labelled, {name: value for name, value in item.sums.items() if name not in incomparable})
                for item in (earlier_performance, performance)
            )
            reason = _revision_reason(published.inputs, now, earlier)
            if reason and shown_before != shown_now:
                values = self._values(earlier_performance.sums)
                revision = Revision(
                    as_of=self._end, reason=reason, labelled=earlier_performance.labelled, values=values
                )
                revisions = (*revisions, revision)[-MAX_REVISIONS:]
                log.warning(
                    "%s was measured before: %s, %s rows with a label", period, reason, earlier_performance.labelled
                )
        problems = performance.problems
        if published and earlier_performance is None:
            problems = (*problems, "what was measured before cannot be read: its revisions are lost")
        performance = performance.model_copy(update={"revisions": revisions, "problems": problems})
        # What was measured before is part of what is said now.
        everything = {**inputs, "labels": labels._asdict(), "revisions": [item.model_dump() for item in revisions]}
        if failed:
            everything["failed"] = failed
        if published and earlier_performance is None:
            everything["replaces"] = published.content_hash  # which cannot be read
        text, partition = performance.model_dump_json(indent=1), datasets.period_partition(period)
        manifest = publish_period_record(self._dataset, partition, _PERFORMANCE, text, everything)
        self.published[period] = manifest, performance
        return performance

    def _values(self, sums: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
        prediction = self._model.prediction_type
        values = {
            name: metric_of_sums(self._gates[name], item, prediction)
            for name, item in sums.items()
            if name in self._gates
        }
        return {name: value for name, value in values.items() if np.isfinite(value)}

    def _compute(
        self, period: str, model: InForce, labels: LabelState, models: RegisteredModels, known_before: datetime
    ) -> tuple[PeriodPerformance, list[str]]:
        """Return how a period did, and the gates whose metric a function of the model folder failed to compute."""
        common = {
            "period": period,
            "champion_version": model.version,
            "champion_content": model.content,
            "is_published": model.predictions is not None,
            "rows": labels.rows,
        }
        if not labels.labelled:
            return PeriodPerformance(**common, labelled=0, sums={}), []
        gates, failed = list(self._gates.values()), list[str]()
        with open_period(self._model, gates, period, model, models, known_before, self._dataset) as rows:
            if not rows.size:
                return PeriodPerformance(**common, labelled=0, sums={}, problems=tuple(rows.problems)), []
            sums, problems = dict[str, tuple[float, ...]](), list(rows.problems)
            for gate in gates:
                try:
                    measured = sum_rows(gate, rows.evidence)
                except NotComputedError as error:
                    problems.append(f"{gate.name}: {error}")
                    if is_of_user_code(error):
                        failed.append(gate.name)
                    continue
                if measured and not np.isfinite(measured).all():
                    problems.append(f"{gate.name}: {NOT_FINITE}")
                elif measured:
                    sums[gate.name] = measured
            calibration = _count_calibration(self._model, rows.evidence)
        performance = PeriodPerformance(
            **common, labelled=rows.size, sums=sums, calibration=calibration, problems=tuple(problems)
        )
        return performance, failed


DailyPerformance = Mapping[str, DailySums]
"""The sums of each day, by metric."""


class HoldoutPerformance(NamedTuple):
    """What a champion showed on each day of the evidence that it was promoted on.

    Attributes:
        sums: of each day, by the gate's name.
        problems: what is not known of it.
        unknown: gates of which nothing is known for now, so that days cannot be compared with anything.
    """

    sums: DailyPerformance
    problems: Sequence[str] = ()
    unknown: Collection[str] = ()


def measure_holdout(
    model: ModelSpec, state: LedgerState, tenure: ChampionTenure, *, only_published: bool = False
) -> HoldoutPerformance:
    """Return what a champion showed on its holdout. It is published once: the evaluation may expire.

    A forecast whose rows are of the period that they predict has only the forecasts of the holdout that were made in
    it: its first days have short horizons, and later days have all. They are compared in metrics of one horizon only.
    With `only_published`, nothing is measured.
    """
    dataset, metrics = performance_dataset(model.name), describe_metrics(model)
    partition = f"{_HOLDOUT_PREFIX}{tenure.content[:_DIGITS]}"
    verdict = find_promoting_verdict(state, tenure)
    name = Path(verdict.evidence["evaluation"]).name if "evaluation" in verdict.evidence else None
    inputs = {"champion": tenure.content, "evaluation": name, "metrics": metrics, "code": metrics_code()}
    fingerprint, published = compute_fingerprint(inputs), dataset.manifest(partition)
    if published and published.inputs["champion"] != tenure.content:
        published = None
    if published and (only_published or published.fingerprint == fingerprint):
        return _read_holdout(dataset, published, metrics)
    if only_published:
        return HoldoutPerformance({}, ["performance: the champion's holdout is not measured yet"], metrics.keys())
    evaluation = evaluation_dataset(model).manifest(name) if name else None
    if evaluation is None:
        if published:
            return _read_holdout(dataset, published, metrics)
        problem = "performance is not compared: the evaluation of the champion's verdict is not in the lake any more"
        return HoldoutPerformance({}, [problem])
    evidence, sums, problems = load_evidence(model, evaluation), dict[str, DailySums](), list[str]()
    failed = dict[str, list[str]]()  # days, by gate; the problem, if it is of none
    for gate in monitored_gates(model):
        failed_days = dict[str, str]()
        try:
            days = sum_by_day(gate, evidence, failed_days)
            first = first_comparable_day(model, gate, evidence)
        except Exception as error:  # of any class, of functions of users
            problems.append(f"performance is not compared by {gate.name}: {first_line(error)}")
            if not isinstance(error, NotComputedError) or is_of_user_code(error):
                log.warning("the holdout is not measured by %s", gate.name, exc_info=error)
                failed[gate.name] = [first_line(error)]
            continue
        if failed_days:
            failed[gate.name] = sorted(failed_days)
        left_out = failed_days | {day: NOT_FINITE for day, parts in days.items() if not np.isfinite(parts).all()}
        problems += [f"the holdout by {gate.name}: {day}: {text}" for day, text in sorted(left_out.items())]
        if first and not any(day >= first for day in days):
            problems.append(f"performance is not compared by {gate.name}: no day of the holdout has all horizons")
        sums[gate.name] = {day: parts for day, parts in days.items() if day >= first and day not in left_out}
    text = json.dumps({"sums": sums, "problems": problems}, indent=1, sort_keys=True)
    if failed:
        inputs["failed"] = failed  # they are computed again by the next run
    return _read_holdout(dataset, publish_period_record(dataset, partition, _PERFORMANCE, text, inputs), metrics)


def first_comparable_day(model: ModelSpec, gate: MetricGate, evidence: Evidence) -> str:
    """Return the first day of a holdout that has all horizons of a metric, as later days have; empty: all have.

    Raises:
        NotComputedError: horizons are not known.
    """
    if model.forecast is None or model.forecast.row_period != "target" or gate.horizon is not None:
        return ""
    if isinstance(evidence.horizons, MissingEvidence):
        raise NotComputedError(f"the horizons of the rows are not known: {evidence.horizons.problem}")
    assert evidence.holdout
    largest = max((int(batch.max()) for [batch] in iter_numbers(evidence.horizons) if batch.size), default=1)
    calendar = feature_spec(model).calendar
    period = calendar.shift(evidence.holdout[0], max(largest - 1, 0))
    day = calendar.date_of(period)
    return str(day if calendar.first_of(day) >= period else day + timedelta(days=1))


def read_periods(
    model: ModelSpec,
    problems: list[str] | None = None,
    *,
    start: str = "",
    already_read: Mapping[str, tuple[Manifest, PeriodPerformance]] | None = None,
) -> dict[str, tuple[Manifest, PeriodPerformance]]:
    """Return what is published of the periods from `start` on, oldest first.

    Args:
        model: its spec.
        problems: what cannot be read is added, if given.
        start: a period; empty: all are read.
        already_read: periods that need not be read again.

    Raises:
        DatasetError: it cannot be read, and no `problems` are given.
    """
    dataset, metrics = performance_dataset(model.name), describe_metrics(model)
    periods = {period: item for period, item in (already_read or {}).items() if period >= start}
    names = {datasets.partition_period(name): name for name in _period_partitions(dataset, start)}
    for manifest in dataset.read_manifests([name for period, name in names.items() if period not in periods]):
        try:
            performance = _read_performance(dataset, manifest, metrics)
        except DatasetError as error:
            if problems is None:
                raise
            problems.append(str(error))
        else:
            periods[datasets.partition_period(manifest.partition)] = manifest, performance
    return dict(sorted(periods.items()))


def describe_metrics(model: ModelSpec) -> dict[str, Any]:
    """Return what the sums of each metric depend on besides rows and our code, by the gate's name.

    Sums of another description are of another metric, whatever its gate is called.
    """
    described = dict[str, Any]()
    for gate in monitored_gates(model):
        metric = described[gate.name] = describe_metric(model, gate)
        if ":" in gate.metric:
            try:
                code = code_of((gate.metric.partition(":")[0],), (), model.code_packages)
            except (ModuleNotFoundError, SyntaxError) as error:
                code = {"problem": str(error)}  # it is named where it is computed
            metric["code"] = code
    return described


def describe_metric(model: ModelSpec, gate: MetricGate) -> dict[str, Any]:
    """Return what the metric of a gate is, whatever its code."""
    return {
        "label": model.label,
        "prediction": model.prediction_type and model.prediction_type.model_dump(mode="json"),
        "weight": model.weight,
        "query": model.query,
        "forecast": model.forecast and model.forecast.model_dump(mode="json"),
        "metric": gate.model_dump(mode="json", include=set(_METRIC_FIELDS)),
    }


def digest_metric(model: ModelSpec, gate: MetricGate) -> str:
    """Return a short digest of `describe_metric`."""
    return compute_fingerprint(describe_metric(model, gate))[:_DIGITS]


def digest_metrics(model: ModelSpec) -> dict[str, str]:
    """Return a short digest of what the metric of each monitored gate is, whatever its code, by the gate's name."""
    return {gate.name: digest_metric(model, gate) for gate in monitored_gates(model)}


def _period_partitions(dataset: Dataset, start: str) -> list[str]:
    names = dataset.partitions(datasets.period_partition(start) if start else "")
    return [name for name in names if not name.startswith((_HOLDOUT_PREFIX, PAIR_PREFIX))]


def find_promoting_verdict(state: LedgerState, tenure: ChampionTenure) -> VerdictRecorded:
    """Return the verdict that promoted the champion first."""
    for earlier in state.tenures:
        event = state.entries[earlier.entry_number - 1].event
        if earlier.content == tenure.content and isinstance(event, VersionPromoted):
            verdict = state.find_verdict_event(event.verdict_entry)
            assert verdict is not None, "the ledger accepts no promotion without its verdict"
            return verdict
    raise AssertionError("the ledger accepts no champion that was never promoted")


def first_period_in_force(state: LedgerState, content: str) -> str:
    """Return the first period from which on the champion with this content was in force."""
    return min(start for start, tenure in _tenure_starts(state) if tenure.content == content)


def _tenure_starts(state: LedgerState) -> Iterator[tuple[str, ChampionTenure]]:
    """Yield from which period on each champion was in force, and it, in the order of the ledger.

    It is that until which the verdict that promoted it knew the data. The ledger does not know of which data it was
    when a person rolled back: what was not measured by then is that of the one that is restored.
    """
    start = ""
    for tenure in state.tenures:
        event = state.entries[tenure.entry_number - 1].event
        if isinstance(event, VersionPromoted):
            verdict = state.find_verdict_event(event.verdict_entry)
            start = verdict.judged_as_of if verdict else tenure.as_of
        yield start or tenure.as_of, tenure


def read_labels(con: duckdb.DuckDBPyConnection, spine: Path, label: str, known_before: datetime) -> LabelState:
    """Return what was known before an instant of the labels of a period's examples."""
    known_at, is_labelled = "CAST(label_known_at AS TIMESTAMPTZ)", f"{quote_name(label)} IS NOT NULL"
    instant = f"TIMESTAMPTZ {quote_text(known_before.isoformat())}"
    was_known = f"FILTER ({is_labelled} AND {known_at} < {instant})"
    query = (
        f"SELECT count(*), count(*) {was_known}, max({known_at}) {was_known}, "
        f"min({known_at}) FILTER ({is_labelled} AND {known_at} >= {instant}) FROM {parquet_rows(spine)}"
    )
    [(count, labelled, known_until, pending)] = con.sql(query).fetchall()
    last, next_one = (instant and instant.astimezone(UTC).isoformat() for instant in (known_until, pending))
    digests = _digests_until(con, spine, label, last) if last else ("0", "0")
    return LabelState(count, labelled, last, next_one, *digests)


def _digests_until(con: duckdb.DuckDBPyConnection, spine: Path, label: str, known_until: str) -> tuple[str, str]:
    """Return the digests of the rows whose label was known until an instant, included: without, and with labels."""
    names = [name for name in pq.read_schema(spine).names if name not in (label, "label_known_at")]
    listed = ", ".join(map(quote_name, names))
    digests = (
        f"CAST(sum(md5_number_lower(CAST(row({terms}) AS VARCHAR))) AS VARCHAR)"
        for terms in (listed, f"{listed}, {quote_name(label)}")
    )
    query = (
        f"SELECT {', '.join(digests)} FROM {parquet_rows(spine)} WHERE {quote_name(label)} IS NOT NULL "
        f"AND CAST(label_known_at AS TIMESTAMPTZ) <= TIMESTAMPTZ {quote_text(known_until)}"
    )
    [(row_digest, label_digest)] = con.sql(query).fetchall()
    return row_digest or "0", label_digest or "0"


def _revision_reason(
    previous: Mapping[str, Any], now: Mapping[str, Any], earlier: tuple[str, str] | None
) -> str | None:
    """Return why a period shows something else than before; None if only the code or the metrics are others.

    `earlier` are the digests, of today's rows, of the labels that were known before.
    """
    reasons = []
    digests = previous["labels"]["row_digest"], previous["labels"]["label_digest"]
    if earlier and earlier != digests:
        contradicts = earlier[0] == digests[0]
        reasons.append("labels contradict earlier ones" if contradicts else "labelled rows were corrected")
    if now["labels"]["labelled"] > previous["labels"]["labelled"]:
        reasons.append("labels came late")
    if now["predictions"] != previous["predictions"]:
        reasons.append("predictions were published again")
    elif not reasons and now["features"] != previous["features"]:
        reasons.append("features were published again")
    if reasons and any(
        previous["metrics"][name] != described
        for name, described in now["metrics"].items()
        if name in previous["metrics"]
    ):
        reasons.append("metric changed")
    return ", ".join(reasons) or None


def _count_calibration(model: ModelSpec, evidence: Evidence) -> tuple[tuple[float, float, float], ...]:
    """Return the rows, and sums of predictions and labels, by bins of probabilities.

    Nothing of other kinds, nor where a label is not 0 or 1, or a prediction no probability.
    """
    if (model.prediction_type and model.prediction_type.kind != "binary") or isinstance(
        evidence.label, MissingEvidence
    ):
        return ()
    sums = np.zeros((3, PROBABILITY_BINS))
    for label, score in iter_numbers(evidence.label, evidence.candidate):
        # Numbers of a model that declares no kind, or labels that a metric refuses.
        if not ((score >= 0) & (score <= 1)).all() or not np.isin(label, (0, 1)).all():
            return ()
        bins = np.minimum((score * PROBABILITY_BINS).astype(np.intp), PROBABILITY_BINS - 1)
        for row, values in enumerate((None, score, label)):
            sums[row] += np.bincount(bins, values, PROBABILITY_BINS)
    rows, predicted, actual = sums.tolist()
    return tuple(zip(rows, predicted, actual, strict=True))


def metrics_code() -> dict[str, str]:
    """Return the code that sums follow from. What scores and joins does not count, or releases would do it again."""
    code = code_of(("evergreen.monitoring.daily_metrics",), ("numpy",))
    return {name: code[name] for name in ("numpy", *_METRIC_MODULES)}


def _by_period(dataset: Dataset, periods: Iterable[str]) -> dict[str, Manifest]:
    manifests = dataset.read_manifests([datasets.period_partition(period) for period in periods])
    return {datasets.partition_period(manifest.partition): manifest for manifest in manifests}


def _read_performance(dataset: Dataset, manifest: Manifest, metrics: Mapping[str, Any]) -> PeriodPerformance:
    """Return what is published of a period, without the sums of what are other metrics by now."""
    performance = read_period_record(dataset, manifest, _PERFORMANCE, PeriodPerformance)
    sums, problems = _same_metrics(performance.sums, manifest, metrics)
    if not problems:
        return performance
    calibration = performance.calibration if sums else ()
    return performance.model_copy(
        update={"sums": sums, "calibration": calibration, "problems": (*performance.problems, *problems)}
    )


def _read_holdout(dataset: Dataset, manifest: Manifest, metrics: Mapping[str, Any]) -> HoldoutPerformance:
    document = json.loads(dataset.file_path(manifest, _PERFORMANCE).read_bytes())
    sums, problems = _same_metrics(document["sums"], manifest, metrics)
    problems = [*document["problems"], *(f"performance is not compared by {problem}" for problem in problems)]
    return HoldoutPerformance(sums, problems, {name for name in _failed(manifest) if not sums.get(name)})


def _failed(manifest: Manifest) -> Collection[str]:
    """Return the gates whose metric failed when this was measured, and may not do so another time."""
    failed: Collection[str] = manifest.inputs.get("failed", ())
    return failed


def _same_metrics(
    sums: Mapping[str, Any], manifest: Manifest, metrics: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the sums of the metrics that are described as when they were computed, and name the others."""
    described = manifest.inputs["metrics"]
    unchanged = {
        name: value for name, value in sums.items() if name in metrics and described.get(name) == metrics[name]
    }
    return unchanged, [f"{name} {OTHER_METRIC}" for name in sums if name in metrics and name not in unchanged]
