"""The metrics of models, read from ledger, lake and jobs at the moment of a scrape: nothing is counted in a process.

So every API server gives the same values, and a restart loses none. What is read for a model does not grow with its
history: the state of its ledger, its last `MAX_VERDICTS` verdicts, its last `MAX_PERIODS` periods of features, and its
training attempts of the last 30 days.

A part of a model that cannot be read leaves its metrics out and sets `evergreen_scrape_error`; all else is unaffected.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from evergreen import ledger, storage
from evergreen.errors import first_line
from evergreen.gates.verdict import GateOutcome
from evergreen.lake import datasets
from evergreen.ledger import LedgerState, VerdictRecorded
from evergreen.ledger.entries import LedgerEntry
from evergreen.notifications.outbox import read_orphans, read_outbox
from evergreen.promotion.approvals import find_waiting_approval, find_waiting_rollback
from evergreen.promotion.freshness import champion_due, count_gaps, features_due, list_recent_periods
from evergreen.settings import settings
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import feature_spec, load_spec, model_names
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.training.attempt import Attempt
from evergreen.training.cost import PriceTable, total_cost
from evergreen.training.outcome import Outcome
from evergreen.training.recent_attempts import read_recent_attempts

MAX_PERIODS = 1000
MAX_VERDICTS = 10
_TRAINING_CACHE_S = 300.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelMetric:
    """A metric: its name, which ends with its unit, what it means, and its labels besides `model` and `team`.

    Without `has_model`, it is about the deployment.
    """

    name: str
    description: str
    labels: tuple[str, ...] = ()
    is_counter: bool = False
    has_team: bool = True
    has_model: bool = True

    @property
    def label_names(self) -> tuple[str, ...]:
        model = ("model",) if self.has_model else ()
        return (*model, *(("team",) if self.has_team else ()), *self.labels)


MetricSample = tuple[ModelMetric, tuple[str, ...], float]
"""A metric, the values of its own labels, and its value."""

CHAMPION = ModelMetric("evergreen_champion", "1 if the model has a champion, else 0.")
PROMOTED = ModelMetric(
    "evergreen_champion_promoted_timestamp_seconds",
    "When the champion became champion, by a promotion or a rollback; absent without a champion.",
)
CHAMPION_DATA_UNTIL = ModelMetric(
    "evergreen_champion_data_until_timestamp_seconds",
    "Until when the champion knows data, not included; absent without a champion.",
)
CHAMPION_DUE = ModelMetric(
    "evergreen_champion_due_timestamp_seconds",
    "When a champion with newer data is needed at the latest, by `fresh_within` of the model; absent without that.",
)
FEATURES_UNTIL = ModelMetric(
    "evergreen_features_until_timestamp_seconds",
    "When the newest published period of features ended. Models that use the features of another have no series.",
)
FEATURES_DUE = ModelMetric(
    "evergreen_features_due_timestamp_seconds",
    "When the next period of features has to be published at the latest, by `fresh_within` of the features; absent "
    "without that.",
)
MISSING_PERIODS = ModelMetric(
    "evergreen_features_missing_periods",
    f"Periods that are not published although a later one is, of the last {MAX_PERIODS}.",
)
PREDICTIONS_UNTIL = ModelMetric(
    "evergreen_predictions_until_timestamp_seconds",
    "When the newest period with published batch predictions ended; absent for a model without `score`.",
)
VERDICT = ModelMetric(
    "evergreen_verdict", "1 for the outcome of the newest verdict, 0 for others; absent without one.", ("outcome",)
)
VERDICT_RECORDED = ModelMetric("evergreen_verdict_timestamp_seconds", "When the newest verdict was recorded.")
GATES = ModelMetric("evergreen_verdict_gates", "Gates of the newest verdict, by outcome.", ("outcome",))
REJECTED_IN_A_ROW = ModelMetric(
    "evergreen_verdicts_rejected_in_a_row",
    f"How many of the newest verdicts, without one between that is not, rejected a candidate: at most {MAX_VERDICTS}.",
)
ALPHA = ModelMetric(
    "evergreen_comparison_alpha",
    "Chance of a false promotion that the newest comparison with a champion has spent: as this gets small, only large "
    "gains are proved; absent before the first comparison.",
    ("gate",),
)
ALPHA_BUDGET = ModelMetric(
    "evergreen_comparison_alpha_budget",
    "Chance of a false promotion over the life of the model: 1 - `confidence` of the gate.",
    ("gate",),
)
CHALLENGERS = ModelMetric(
    "evergreen_challengers",
    "Challengers that gather evidence, or that have passed their gates and wait for their promotion.",
    ("state",),
)
APPROVALS_WAITING = ModelMetric(
    "evergreen_approvals_waiting", "Versions that have passed their gates and wait for a person's approval."
)
APPROVAL_SINCE = ModelMetric(
    "evergreen_approval_waiting_since_timestamp_seconds",
    "When the verdict was recorded that waits for an approval; absent where none does.",
)
FROZEN = ModelMetric(
    "evergreen_promotions_frozen", "1 while nothing is promoted because a person froze the model, else 0."
)
ENTRIES = ModelMetric(
    "evergreen_ledger_entries", "Entries of the ledger, by kind of event.", ("kind",), is_counter=True
)
ATTEMPTS = ModelMetric(
    "evergreen_training_attempts",
    "Training attempts of the last 30 days, by outcome; `running` also stands for one that was killed without a trace.",
    ("outcome",),
)
CPU_SECONDS = ModelMetric("evergreen_training_cpu_seconds", "CPU seconds that attempts of the last 30 days occupied.")
MEMORY_SECONDS = ModelMetric(
    "evergreen_training_memory_gibibyte_seconds", "Memory that attempts of the last 30 days occupied, GiB × seconds."
)
GPU_SECONDS = ModelMetric("evergreen_training_gpu_seconds", "GPU seconds that attempts of the last 30 days occupied.")
COST = ModelMetric(
    "evergreen_training_cost",
    "Price of the attempts of the last 30 days, by the table `EVERGREEN_PRICES`; absent where a price is not known.",
    ("currency",),
)
SCRAPE_ERROR = ModelMetric(
    "evergreen_scrape_error",
    "1 if this part of the model could not be read, and has no metrics; the log of the API server says why.",
    ("part",),
    has_team=False,
)
NOTIFICATIONS_UNSENT = ModelMetric(
    "evergreen_notifications_unsent",
    "Notifications that the receiver of a route did not accept yet, also of a route that is no longer set.",
    ("route",),
    has_team=False,
    has_model=False,
)
NOTIFICATIONS_UNSENT_SINCE = ModelMetric(
    "evergreen_notifications_unsent_since_timestamp_seconds",
    "Since when that waits which waits longest to be sent by a route; absent where nothing waits.",
    ("route",),
    has_team=False,
    has_model=False,
)
NOTIFICATIONS_CHECKED = ModelMetric(
    "evergreen_notifications_checked_timestamp_seconds",
    "When a route last looked for what is new; 0 if it never did.",
    ("route",),
    has_team=False,
    has_model=False,
)
NOTIFICATIONS_GIVEN_UP = ModelMetric(
    "evergreen_notifications_given_up",
    "Notifications that nobody received, and that a route sends no more.",
    ("route",),
    is_counter=True,
    has_team=False,
    has_model=False,
)

MODEL_METRICS = (
    CHAMPION,
    PROMOTED,
    CHAMPION_DATA_UNTIL,
    CHAMPION_DUE,
    FEATURES_UNTIL,
    FEATURES_DUE,
    MISSING_PERIODS,
    PREDICTIONS_UNTIL,
    VERDICT,
    VERDICT_RECORDED,
    GATES,
    REJECTED_IN_A_ROW,
    ALPHA,
    ALPHA_BUDGET,
    CHALLENGERS,
    APPROVALS_WAITING,
    APPROVAL_SINCE,
    FROZEN,
    ENTRIES,
    ATTEMPTS,
    CPU_SECONDS,
    MEMORY_SECONDS,
    GPU_SECONDS,
    COST,
    SCRAPE_ERROR,
    NOTIFICATIONS_UNSENT,
    NOTIFICATIONS_UNSENT_SINCE,
    NOTIFICATIONS_CHECKED,
    NOTIFICATIONS_GIVEN_UP,
)

_VERDICT_OUTCOMES = ("promote", "inconclusive", "reject")
_GATE_OUTCOMES: tuple[GateOutcome, ...] = get_args(GateOutcome)
_ATTEMPT_OUTCOMES = ("running", *(outcome.name.lower() for outcome in Outcome))


@dataclass(eq=False)  # a registry hashes it
class ModelCollector(Collector):
    """Collects the metrics of all models.

    Attributes:
        clock: the present; ages are left to Prometheus, which has a clock of its own.
    """

    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _training: dict[str, tuple[float, list[MetricSample]]] = field(default_factory=dict)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield each metric with the samples of all models."""
        families: dict[ModelMetric, CounterMetricFamily | GaugeMetricFamily] = {
            metric: (CounterMetricFamily if metric.is_counter else GaugeMetricFamily)(
                metric.name, metric.description, labels=metric.label_names
            )
            for metric in MODEL_METRICS
        }
        now = self.clock()
        for name in model_names():
            for metric, labels, value in self._model_samples(name, now):
                families[metric].add_metric(labels, value)
        for metric, labels, value in route_samples():
            families[metric].add_metric(labels, value)
        yield from families.values()

    def _model_samples(self, name: str, now: datetime) -> Iterator[MetricSample]:
        """Yield the samples of a model with all their labels, and for each part whether it failed."""
        try:
            model = load_spec(name)
            spec = feature_spec(model)
        except Exception as error:
            log.warning("no metrics of %s: its spec cannot be read: %s", name, first_line(error))
            yield SCRAPE_ERROR, (name, "spec"), 1
            return
        yield SCRAPE_ERROR, (name, "spec"), 0
        parts: Mapping[str, Callable[[], list[MetricSample]]] = {
            "ledger": lambda: list(ledger_samples(model, ledger.read_state(name))),
            "features": lambda: list(data_samples(model, spec, now)),
            "training": lambda: self._training_samples(name, now),
        }
        for part, read in parts.items():
            try:
                samples = read()
            except Exception as error:
                log.warning("no metrics of %s about its %s: %s", name, part, first_line(error))
                yield SCRAPE_ERROR, (name, part), 1
                continue
            yield SCRAPE_ERROR, (name, part), 0
            for metric, labels, value in samples:
                yield metric, (name, model.owner, *labels), value

    def _training_samples(self, name: str, now: datetime) -> list[MetricSample]:
        expiry, samples = self._training.get(name, (0.0, []))
        if time.monotonic() >= expiry:
            file = settings().prices
            prices = PriceTable.read(file) if file else None
            attempts = read_recent_attempts(storage.storage_path(settings().jobs) / name, now)
            samples = list(training_samples(attempts, prices))
            self._training[name] = time.monotonic() + _TRAINING_CACHE_S, samples
        return samples


def route_samples() -> Iterator[MetricSample]:
    """Yield what each route of notifications has not sent; of one that has never run, nothing waits.

    Routes that are no longer set have samples while something of theirs is unsent.
    """
    routes = settings().notifications.routes
    outboxes = read_orphans(routes)
    for route in routes:
        try:
            outbox = outboxes[route] = read_outbox(route)
        except Exception as error:
            log.warning("no metrics of the route %s of notifications: %s", route, first_line(error))
            continue
        yield NOTIFICATIONS_CHECKED, (route,), outbox.checked_at.timestamp() if outbox.checked_at else 0
        yield NOTIFICATIONS_GIVEN_UP, (route,), outbox.given_up
    for route, outbox in outboxes.items():
        yield NOTIFICATIONS_UNSENT, (route,), len(outbox.unsent)
        if since := outbox.oldest_unsent:
            yield NOTIFICATIONS_UNSENT_SINCE, (route,), since.timestamp()


def ledger_samples(model: ModelSpec, state: LedgerState) -> Iterator[MetricSample]:
    """Yield what the ledger says of a model."""
    calendar = feature_spec(model).calendar
    tenure = state.champion_tenure
    yield CHAMPION, (), tenure is not None
    if tenure:
        yield PROMOTED, (), state.entries[tenure.entry_number - 1].recorded_at.timestamp()
        yield CHAMPION_DATA_UNTIL, (), calendar.start(tenure.as_of).timestamp()
    if due := champion_due(model, state):
        yield CHAMPION_DUE, (), due.timestamp()
    yield from _verdict_samples(state)
    comparisons = state.entries.comparisons()
    for gate in model.gates:
        if isinstance(gate, AgainstChampionGate):
            yield ALPHA_BUDGET, (gate.name,), 1 - gate.confidence
            spends = (spend for earlier in reversed(comparisons) for spend in earlier.spending)
            newest = next((spend for spend in spends if spend.gate == gate.name), None)
            if newest:
                yield ALPHA, (gate.name,), newest.alpha
    gathers = state.open_comparison is not None
    yield CHALLENGERS, ("gathering_evidence",), gathers
    yield CHALLENGERS, ("waiting",), state.challenger_content is not None and not gathers
    waiting = find_waiting_approval(model, state) or find_waiting_rollback(model, state)
    yield APPROVALS_WAITING, (), waiting is not None
    if waiting:
        yield APPROVAL_SINCE, (), waiting.recorded_at.timestamp()
    yield FROZEN, (), state.is_frozen
    kinds = Counter(record.kind for record in state.entries.records)
    for event in get_args(ledger.LedgerEvent):
        kind = event.model_fields["kind"].default
        yield ENTRIES, (kind,), kinds[kind]


def _verdict_samples(state: LedgerState) -> Iterator[MetricSample]:
    newest, rejected = None, 0
    for entry in _newest_verdicts(state):
        assert isinstance(entry.event, VerdictRecorded)
        newest = newest or entry
        if _verdict_outcome(entry.event) != "reject":
            break
        rejected += 1
    yield REJECTED_IN_A_ROW, (), rejected
    if newest is None:
        return
    assert isinstance(newest.event, VerdictRecorded)
    yield VERDICT_RECORDED, (), newest.recorded_at.timestamp()
    outcome = _verdict_outcome(newest.event)
    for label in _VERDICT_OUTCOMES:
        yield VERDICT, (label,), label == outcome
    gates = Counter(result.outcome for result in newest.event.verdict.results)
    for gate_outcome in _GATE_OUTCOMES:
        yield GATES, (gate_outcome,), gates[gate_outcome]


def _newest_verdicts(state: LedgerState) -> Iterator[LedgerEntry]:
    """Yield the last `MAX_VERDICTS` verdicts, the newest first; each is read when it is needed."""
    count, records = 0, reversed(state.entries.records)
    for number, record in zip(range(state.head_number, 0, -1), records, strict=True):
        if record.kind == VerdictRecorded.model_fields["kind"].default:
            yield state.entries[number - 1]
            count += 1
            if count == MAX_VERDICTS:
                return


def _verdict_outcome(event: VerdictRecorded) -> str:
    if event.verdict.promote:
        return "promote"
    return "inconclusive" if event.verdict.is_inconclusive else "reject"


def data_samples(model: ModelSpec, spec: FeatureSpec, now: datetime) -> Iterator[MetricSample]:
    """Yield what the lake has of a model: its features, if it builds them, and its batch predictions."""
    calendar = spec.calendar
    start = max(spec.first_period, calendar.shift(calendar.period_at(now), -MAX_PERIODS))
    if model.builds_features:
        published = list_recent_periods(model, now, MAX_PERIODS)
        newest = published[-1] if published else None
        if newest:
            yield FEATURES_UNTIL, (), calendar.end(newest).timestamp()
        yield MISSING_PERIODS, (), count_gaps(published, spec)
        if due := features_due(spec, newest):
            yield FEATURES_DUE, (), due.timestamp()
    if model.score:
        predictions = datasets.open_dataset(f"predictions/{model.name}")
        partitions = predictions.partitions(datasets.period_partition(start)) or predictions.partitions()
        if partitions:
            yield PREDICTIONS_UNTIL, (), calendar.end(datasets.partition_period(partitions[-1])).timestamp()


def training_samples(attempts: list[Attempt], prices: PriceTable | None) -> Iterator[MetricSample]:
    """Yield how attempts ended, and what they occupied and cost."""
    outcomes = Counter(attempt.outcome.name.lower() if attempt.outcome else "running" for attempt in attempts)
    for outcome in _ATTEMPT_OUTCOMES:
        yield ATTEMPTS, (outcome,), outcomes[outcome]
    cost = total_cost(attempts, prices)
    yield CPU_SECONDS, (), cost.cpu_seconds
    yield MEMORY_SECONDS, (), cost.memory_gib_seconds
    yield GPU_SECONDS, (), cost.gpu_seconds
    if prices and (cost.price is not None):
        yield COST, (prices.currency,), cost.price
