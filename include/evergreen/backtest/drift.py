"""Retrains that monitoring would have asked for: what its alarms say of the live model's inputs, as of past dates.

Histograms, series, alarms, and the rules of a request are those of the monitor DAG. It runs when a day is over, and
asks on that day; the candidate of the next date of the backtest is what such a retrain makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np

from evergreen.backtest.cache import BacktestCache, BacktestCandidate
from evergreen.backtest.simulated_ledger import SimulatedLedger
from evergreen.backtest.walk_forward import BacktestPoint
from evergreen.backtest.watched_features import find_features
from evergreen.errors import EvergreenError, first_line
from evergreen.ingest.databases import open_database
from evergreen.lake import datasets, fingerprints
from evergreen.lake.datasets import Manifest
from evergreen.ledger import ChampionTenure
from evergreen.monitoring import service
from evergreen.monitoring.histogram_files import Counted, dump_bins, load_bins
from evergreen.monitoring.histograms import Histogram
from evergreen.monitoring.record import MonitoringRecord
from evergreen.monitoring.service import RecordEvidence, ReferenceCounts
from evergreen.promotion.retraining import BUDGET_TIME
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec, RetrainPolicy

_DATA_RULES = ("break", "drift")
_ENTRY = re.compile(r" \(alarm in entry \d+\)")  # of the ledger of the walk, which nobody can read


class RetrainsOnDrift:
    """A walk through the dates of a backtest, oldest first, with the candidates that alarms ask for."""

    def __init__(self, model: ModelSpec, candidates: Mapping[str, BacktestCandidate], cache: BacktestCache):
        policy, self._notes = _data_policy(model)
        self._model = model.model_copy(update={"retrain_on": policy})
        self._candidates, self._cache = candidates, cache
        self._calendar = feature_spec(model).calendar
        self._ledger = SimulatedLedger(self._model)
        self._features, known_later = find_features(model, candidates)
        if known_later:
            self._notes.append(
                f"features of {self._calendar.describe(known_later)} are not those that the candidates were made from: "
                "these days are not watched; backfill with `--reprocess-behavior completed`"
            )
        self._code = fingerprints.code_of(("evergreen.monitoring.histograms",), ("duckdb",))
        self._walked_until = ""
        self._references = dict[str, ReferenceCounts]()
        self._problems = dict[str, tuple[str, ...]]()
        self._failures = list[str]()

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what of the walk so far is not as the spec says, or could not be known."""
        problems = (f"model of {as_of}: {problem}" for as_of, items in self._problems.items() for problem in items)
        return (*self._notes, *problems, *self._failures)

    def deploy(self, candidate: BacktestPoint, live: BacktestPoint | None) -> str | None:
        """Deploy the first candidate, and each that open alarms have asked for since the date before."""
        reason = self._find_cause(candidate, live) if live else "the first candidate"
        if reason:
            manifest = self._candidates[candidate.as_of].candidate
            self._ledger.deploy(candidate, manifest.fingerprint, tuple(manifest.inputs["features"]), reason)
        self._walked_until = candidate.as_of
        return reason

    def _find_cause(self, candidate: BacktestPoint, live: BacktestPoint) -> str | None:
        tenure = self._ledger.state.champion_tenure
        assert tenure
        try:
            newest = self._judge(live, tenure, candidate.as_of)
        except (EvergreenError, OSError, duckdb.Error) as error:  # the other policies need no features
            self._failures.append(f"as of {candidate.as_of}: inputs are not compared: {first_line(error)}")
            return None
        for end in self._ends_of_days(self._walked_until, candidate.as_of):
            record = record_before(newest, self._calendar.date_of(end))
            alarms = [service.alarm_event(record, alarm, {}) for alarm in record.alarms]
            if request := self._ledger.request_retrain(record, alarms, end):
                return f"as of {end}: {_ENTRY.sub('', request.cause)}"
        return None

    def _ends_of_days(self, start: str, end: str) -> Iterator[str]:
        """Yield the periods start < period ≤ end that begin another day, or week, than the one before."""
        shift = self._calendar.shift
        for period, following in pairwise(self._calendar.periods_between(start, shift(end, 1))):
            if self._calendar.date_of(period) != self._calendar.date_of(following):
                yield following

    def _judge(self, live: BacktestPoint, tenure: ChampionTenure, end: str) -> MonitoringRecord:
        """Return what was known of the live model's inputs before the period `end`."""
        reference = self._reference(live, tenure)
        periods = dict[str, Counted]()
        dates = sorted(as_of for as_of in self._candidates if live.as_of <= as_of <= end)
        for first, following in pairwise(dates):
            manifests = {period: item for period, item in self._features.items() if first <= period < following}
            periods |= self._count(reference, manifests)
        state = self._ledger.state
        record, _ = service.judge_periods(self._model, state, tenure, reference, periods, RecordEvidence())
        self._problems[live.as_of] = record.problems  # the newest ones: they name the same days, and later ones
        return record

    def _reference(self, live: BacktestPoint, tenure: ChampionTenure) -> ReferenceCounts:
        """Return the histograms of what the live model was made from, and their bins."""
        if live.as_of not in self._references:
            learned = self._candidates[live.as_of].training_set.inputs["features"]
            manifests = {
                period: item
                for period, item in self._features.items()
                if datasets.period_partition(period) in learned and period < live.as_of
            }
            problems = list[str]()
            columns = service.input_columns(self._model, self._ledger.state, tenure, manifests, problems)

            def compute() -> dict[str, Any]:
                unbinned = list[str]()
                with open_database() as database:
                    bins, counted = service.learn_inputs(database, self._model, columns, manifests, unbinned)
                return {"bins": dump_bins(bins), "periods": _dump(counted), "problems": unbinned}

            # Times of day are counted in the time zone of the calendar.
            inputs = self._inputs(manifests) | {"columns": columns, "timezone": self._calendar.timezone}
            stored = self._cache.cached("reference", inputs, compute)
            problems += stored["problems"]
            self._references[live.as_of] = ReferenceCounts(
                tuple(columns), load_bins(stored["bins"]), _load(stored["periods"]), tuple(problems)
            )
        return self._references[live.as_of]

    def _count(self, reference: ReferenceCounts, manifests: Mapping[str, Manifest]) -> dict[str, Counted]:
        """Return the histograms of these periods on the bins of a reference."""

        def compute() -> dict[str, Any]:
            with open_database() as database:
                return _dump(service.count_inputs(database, self._model, reference, manifests))

        bins = [reference.tables, dump_bins(reference.bins)]
        return _load(self._cache.cached("histograms", self._inputs(manifests) | {"bins": bins}, compute))

    def _inputs(self, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
        return {
            "features": {period: manifest.content_hash for period, manifest in manifests.items()},
            "code": self._code,
        }


def record_before(record: MonitoringRecord, day: date) -> MonitoringRecord:
    """Return the record as it was when the days before `day` were known, and none from it on.

    What alarms say of a day depends on no later one, so an alarm was open as long as it had not closed yet.
    """
    alarms = (
        alarm.model_copy(update={"closed": alarm.closed if alarm.closed and alarm.closed < day else None})
        for alarm in record.alarms
        if alarm.opened < day
    )
    return record.model_copy(update={"alarms": tuple(alarms), "judged_until": None})


def _data_policy(model: ModelSpec) -> tuple[RetrainPolicy, list[str]]:
    """Return when alarms of data ask for a retrain, and what of it the spec does not say."""
    policy = model.retrain_on
    if rules := tuple(rule for rule in policy.alarms if rule in _DATA_RULES):
        notes = ["alarms of performance are not simulated"] if "performance" in policy.alarms else []
        return policy.model_copy(update={"alarms": rules}), notes
    policy = RetrainPolicy(alarms=_DATA_RULES)
    return policy, [
        "retrain_on names no alarms of data, so both kinds may ask, with its defaults: a cooldown of "
        f"{policy.cooldown}, and a budget of {policy.budget} in {BUDGET_TIME}"
    ]


def _dump(counted: Mapping[str, Counted]) -> dict[str, Any]:
    return {
        period: {name: [item.rows, item.missing, item.counts.tolist()] for name, item in histograms.items()}
        for period, histograms in counted.items()
    }


def _load(stored: Mapping[str, Any]) -> dict[str, Counted]:
    return {
        period: {
            name: Histogram(rows, missing, np.array(counts, np.int64))
            for name, (rows, missing, counts) in histograms.items()
        }
        for period, histograms in stored.items()
    }
