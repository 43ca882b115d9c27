"""`evergreen status MODEL`: how fresh a model is, what is missing or stale, and what runs.

Features and champion are read from lake and ledger, runs from Airflow, where there is one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta

from rich.console import Console
from rich.text import Text

from evergreen import ledger
from evergreen.cli.doctor.features import stale_features_of_next_retrain
from evergreen.cli.options import print_json
from evergreen.client.airflow import AirflowClient, Json
from evergreen.errors import EvergreenError, first_line
from evergreen.features.inputs import published_periods
from evergreen.lake import datasets
from evergreen.ledger import LedgerState, RetrainRefused, RetrainRequested, VerdictRecorded
from evergreen.monitoring.record import MonitoringRecord, read_record
from evergreen.periods import Calendar
from evergreen.promotion import rollback_rules
from evergreen.promotion.challengers import challenger_wait
from evergreen.promotion.freshness import champion_due, features_due, find_missing_periods
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen_local.backfilling import connect_to_airflow

_TIMEOUT_S = 10.0
_ACTIVE_STATES = ("running", "queued")
_SHOWN_RUNS = 5  # of a DAG


@dataclass(frozen=True)
class FeatureStatus:
    """What is published of the features of a model.

    Attributes:
        fresh_until: the period until which, exclusively, features are published; None: there are none.
        missing: periods after the first published one that are over and have no features.
        stale: which of those that the next retrain reads would be made differently now, and why; or why that is not
            known.
        stale_periods: the first and the last of them.
        are_rebuilt: whether the next retrain builds them again: `stale_features` in the spec.
        due: when the next period has to be published at the latest, by `fresh_within`; None: at no time.
    """

    feature_model: str
    fresh_until: str | None
    published: int
    missing: tuple[str, ...]
    stale: str | None
    due: datetime | None
    stale_periods: tuple[str, str] | None = None
    are_rebuilt: bool = False


@dataclass(frozen=True)
class ChampionStatus:
    """The champion: its version, since when it is that, and the period until which, exclusively, it has data."""

    version: str
    since: datetime
    data_until: str


@dataclass(frozen=True)
class VerdictStatus:
    """The newest verdict, in an entry of the ledger."""

    entry: int
    recorded_at: datetime
    as_of: str
    promote: bool
    reason: str


@dataclass(frozen=True)
class DagStatus:
    """A DAG of the model: whether it is paused, and its runs that are not over."""

    dag_id: str
    is_paused: bool
    runs: tuple[str, ...]


@dataclass(frozen=True)
class ModelStatus:
    """How fresh a model is.

    Attributes:
        champion_due: when a champion with newer data is needed at the latest, by `fresh_within`; None: at no time.
        predictions_until: the period until which, exclusively, batch predictions are published.
        monitored_until: the last day on which the champion's data was compared with that it was made from.
        open_alarms: what has changed since and has not returned; or why that is not known.
        retrain_request: what open alarms last asked for, or why they may not; None if they never did.
        rollback_request: the rollback that matured labels ask for, and what it waits for; None if there is none.
        runs_problem: why nobody knows what runs.
    """

    model: str
    features: FeatureStatus
    champion: ChampionStatus | None
    champion_due: datetime | None
    challenger: str | None
    is_frozen: bool
    verdict: VerdictStatus | None
    predictions_until: str | None
    monitored_until: date | None = None
    open_alarms: tuple[str, ...] = ()
    retrain_request: str | None = None
    rollback_request: str | None = None
    dags: tuple[DagStatus, ...] = ()
    runs_problem: str | None = None


def show_model_status(name: str, console: Console, as_json: bool) -> None:
    """Print the status of a model."""
    model, now = load_spec(name), datetime.now(UTC)
    status = collect_model_status(model, now)
    if as_json:
        print_json(console, asdict(status))
        return
    for line in describe_status(status, feature_spec(model).calendar, now):
        console.print(Text(line))


def collect_model_status(model: ModelSpec, now: datetime) -> ModelStatus:
    """Return the status of a model at the instant `now`. Without an Airflow that responds it has no runs."""
    state, spec = ledger.read_state(model.name), feature_spec(model)
    dags: tuple[DagStatus, ...] = ()
    problem = None
    try:
        dags = read_dags(connect_to_airflow(_TIMEOUT_S), model)
    except EvergreenError as error:
        problem = first_line(error)
    record, alarms = _monitoring(state, model)
    return ModelStatus(
        model=model.name,
        features=_feature_status(model, spec, now),
        champion=_champion_status(state),
        champion_due=champion_due(model, state),
        challenger=state.challenger and f"version {state.challenger}: {challenger_wait(state, model)}",
        is_frozen=state.is_frozen,
        verdict=_newest_verdict(state),
        predictions_until=_published_until(datasets.open_dataset(f"predictions/{model.name}"), spec.calendar),
        monitored_until=record.judged_until if record else None,
        open_alarms=alarms,
        retrain_request=_describe_request(state),
        rollback_request=_describe_rollback(state, model),
        dags=dags,
        runs_problem=problem,
    )


def read_dags(airflow: AirflowClient, model: ModelSpec) -> tuple[DagStatus, ...]:
    """Return the DAGs of the model that Airflow knows, with their active runs.

    Raises:
        AirflowError: Airflow does not respond.
    """
    kinds = [
        f"{model.feature_model}.features",
        f"{model.name}.retrain",
        *([f"{model.name}.monitor"] if model.monitor else []),
        *([f"{model.name}.score"] if model.score else []),
    ]
    parsed = [(dag_id, details) for dag_id in kinds if (details := airflow.dag(dag_id))]
    return tuple(
        DagStatus(
            dag_id,
            bool(details["is_paused"]),
            tuple(map(_describe_run, airflow.dag_runs(dag_id, state=list(_ACTIVE_STATES)))),
        )
        for dag_id, details in parsed
    )


def describe_status(status: ModelStatus, calendar: Calendar, now: datetime) -> list[str]:
    """Return the lines that a person reads at the instant `now`."""
    features = status.features
    if features.fresh_until is None:
        lines = [f"features of {features.feature_model}: none are published"]
    else:
        count = f"{features.published} {calendar.unit}s"
        lines = [f"features of {features.feature_model}: fresh until {features.fresh_until}, {count} are published"]
    if features.missing:
        first, last = features.missing[0], features.missing[-1]
        command = _backfill_command(status.model, first, last)
        lines.append(f"missing: {calendar.describe(features.missing)}; {command} builds them")
    if features.stale:
        lines.append(f"stale: {features.stale}")
    if features.stale_periods:
        command = _backfill_command(status.model, *features.stale_periods)
        rebuilt = "; the next retrain does so, too" if features.are_rebuilt else ""
        lines.append(f"stale: {command} builds them again{rebuilt}")
    if features.due and features.due < now:
        lines.append(f"late: features, {_describe_delay(features.due, now)}")
    if champion := status.champion:
        age = _format_age(now - champion.since)
        lines.append(f"champion: version {champion.version}, for {age}, with data until {champion.data_until}")
    else:
        lines.append("champion: none")
    if status.champion_due and status.champion_due < now:
        delay = _describe_delay(status.champion_due, now) if status.champion else "there is none"
        lines.append(f"late: champion, {delay}")
    if status.challenger:
        lines.append(f"challenger: {status.challenger}")
    if status.is_frozen:
        lines.append("frozen: nothing is promoted until `evergreen unfreeze`")
    if verdict := status.verdict:
        age = _format_age(now - verdict.recorded_at)
        lines.append(f"last verdict: as of {verdict.as_of}, {age} ago, in entry {verdict.entry}: {verdict.reason}")
    else:
        lines.append("last verdict: none")
    if status.monitored_until and not status.open_alarms:
        lines.append(f"monitoring: no alarm is open, as of {status.monitored_until}")
    lines += [f"ALARM: {alarm}" for alarm in status.open_alarms]
    if status.retrain_request:
        lines.append(f"alarms and retrains: {status.retrain_request}")
    if status.rollback_request:
        lines.append(f"ROLLBACK: {status.rollback_request}")
    if status.predictions_until:
        lines.append(f"batch predictions: until {status.predictions_until}")
    if status.runs_problem:
        lines.append(f"runs: not known: {status.runs_problem}")
    else:
        lines += [f"runs: {_describe_dag(dag)}" for dag in status.dags]
        if not status.dags:
            lines.append("runs: Airflow has no DAG of this model")
    return lines


def _feature_status(model: ModelSpec, spec: FeatureSpec, now: datetime) -> FeatureStatus:
    published = published_periods(model)
    stale = stale_periods = None
    try:
        if published and (comparison := stale_features_of_next_retrain(model)).periods:
            stale, stale_periods = comparison.summary, (comparison.periods[0], comparison.periods[-1])
    except EvergreenError as error:
        stale = f"not known: {first_line(error)}"
    return FeatureStatus(
        feature_model=model.feature_model,
        fresh_until=spec.calendar.shift(published[-1], 1) if published else None,
        published=len(published),
        missing=tuple(find_missing_periods(published, spec, now)),
        stale=stale,
        due=features_due(spec, published[-1] if published else None),
        stale_periods=stale_periods,
        are_rebuilt=model.stale_features == "rebuild",
    )


def _champion_status(state: LedgerState) -> ChampionStatus | None:
    tenure = state.champion_tenure
    if tenure is None or state.champion is None:
        return None
    return ChampionStatus(state.champion, state.entries[tenure.entry_number - 1].recorded_at, tenure.as_of)


def _monitoring(state: LedgerState, model: ModelSpec) -> tuple[MonitoringRecord | None, tuple[str, ...]]:
    """Return the record of the champion, if there is one, and its open alarms."""
    if state.champion_content is None:
        return None, ()
    try:
        record = read_record(model.name, state.champion_content)
    except EvergreenError as error:
        return None, (f"not known: {first_line(error)}",)
    return record, tuple(alarm.describe() for alarm in record.open_alarms) if record else ()


def _describe_request(state: LedgerState) -> str | None:
    entries = (state.entries.find_last(kind) for kind in (RetrainRequested, RetrainRefused))
    entry = max(filter(None, entries), key=lambda entry: entry.number, default=None)
    if entry is None:
        return None
    if isinstance(entry.event, RetrainRequested):
        return f"one as of {entry.event.as_of} was asked for in entry {entry.number}: {entry.event.cause}"
    assert isinstance(entry.event, RetrainRefused)
    return f"none as of {entry.event.as_of}, in entry {entry.number}: {entry.event.reason}"


def _describe_rollback(state: LedgerState, model: ModelSpec) -> str | None:
    entry = rollback_rules.find_pending_rollback(state)
    if entry is None:
        return None
    request = rollback_rules.read_request(state, entry.number)
    if obstacle := rollback_rules.find_obstacle(state, model, request):
        wait = f"it is held back: {obstacle}"
    elif model.approval:
        wait = f"it waits for approval, in {model.name}.monitor"
    else:
        wait = f"it follows in {model.name}.monitor"
    return f"one as of {request.as_of} was asked for in entry {entry.number}, and {wait}: {request.reason}"


def _newest_verdict(state: LedgerState) -> VerdictStatus | None:
    entry = state.entries.find_last(VerdictRecorded)
    if entry is None:
        return None
    event = entry.event
    assert isinstance(event, VerdictRecorded)
    verdict = event.verdict
    return VerdictStatus(entry.number, entry.recorded_at, event.judged_as_of, verdict.promote, verdict.reason)


def _published_until(dataset: datasets.Dataset, calendar: Calendar) -> str | None:
    newest = dataset.partitions()[-1:]
    return calendar.shift(datasets.partition_period(newest[0]), 1) if newest else None


def _backfill_command(model: str, first: str, last: str) -> str:
    return f"`evergreen backfill {model} --from {first} --to {last}`"


def _describe_run(run: Json) -> str:
    return f"{run['dag_run_id']} {run['state']}"


def _describe_dag(dag: DagStatus) -> str:
    paused = ", paused: nothing starts it" if dag.is_paused else ""
    if not dag.runs:
        return f"{dag.dag_id}: no active run{paused}"
    runs = ", ".join(dag.runs[:_SHOWN_RUNS])
    rest = f", and {len(dag.runs) - _SHOWN_RUNS} more" if len(dag.runs) > _SHOWN_RUNS else ""
    return f"{dag.dag_id}: {runs}{rest}{paused}"


def _describe_delay(due: datetime, now: datetime) -> str:
    """Say for how long something has been late by `fresh_within`."""
    return f"due by {due:%Y-%m-%d %H:%M} UTC, {_format_age(now - due)} ago"


def _format_age(age: timedelta) -> str:
    hours = int(age.total_seconds() // 3600)
    if hours < 1:
        return "less than an hour"
    return f"{hours} h" if hours < 48 else f"{hours // 24} days"
