"""The spec of a model: one frozen, validated `ModelSpec` in the model's folder.

Importing this module, and so a model's `model.py`, loads no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from croniter import croniter
from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from evergreen.errors import Fault, SpecError
from evergreen.periods import Calendar, Duration
from evergreen.spec import DurationText, Frozen, Name, NonEmptyStr, PositiveDuration, auto_rollback
from evergreen.spec.auto_rollback import AutoRollbackPolicy
from evergreen.spec.columns import RawColumn
from evergreen.spec.gates import (
    DAY_CLUSTER,
    MIN_CLUSTERS,
    AgainstChampionGate,
    Gate,
    PairedComparisonGate,
    gate_kind_problem,
)
from evergreen.spec.origins import (
    TEXT_FORMATS,
    Origin,
    RawFiles,
    RawQuery,
    RawTable,
    check_origin,
    check_template_period,
)
from evergreen.spec.parameters import PARAMETERS_ERROR, Parameters
from evergreen.spec.prediction_type import Classes, ForecastSeries, ModelKind, PredictionType, Quantiles, missing_field

_LONGEST_TRAILING = timedelta(366)

_FAULTS_ERROR = "faults"  # its context has them
_KIND_FIELDS = {
    "classes": "list at least two, in the order in which the model returns their probabilities",
    "quantiles": "list at least two, from the lowest to the highest, as the model returns them",
    "forecast": "write the columns that name a series, that of the horizon and the season, as "
    'dict(series=["shop"], horizon="days_ahead", season=7)',
    "query": "name the column of the spine that says which rows are ranked together",
}
_FIELDS_OF_KINDS = {"classes": "multiclass", "quantiles": "quantile", "forecast": "forecast", "query": "ranking"}

ModulePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]


def _check_cron(expression: str) -> str:
    if not croniter.is_valid(expression):
        raise ValueError(
            f"{expression!r} is no cron expression: write five fields, like '0 4 * * 1' for Mondays at 4:00"
        )
    return expression


Cron = Annotated[str, StringConstraints(pattern=r"^\S+( \S+){4}$"), AfterValidator(_check_cron)]


def _multiple_problem(name: str, duration: Duration, calendar: Calendar) -> str | None:
    if calendar.is_multiple(duration):
        return None
    multiple = "days or weeks" if calendar.unit == "day" else f"a multiple of {calendar.period}"
    return f"{name} is {duration}, no whole number of periods of {calendar.period}: write {multiple}"


class HistoryColumns(Frozen):
    """The columns of a register with history: what its rows are about, and when each of them is valid.

    Either days of the model's calendar, or instants: `date32` or `timestamp[us, tz=UTC]`.
    """

    keys: tuple[NonEmptyStr, ...] = Field(
        min_length=1, description="columns of which a combination has at most one valid row at any time"
    )
    valid_from: NonEmptyStr = Field(description="column with the first day or instant at which a row is valid")
    valid_to: NonEmptyStr | None = Field(
        None,
        description="column with the first day or instant at which it no longer is; null: it still is. Without such a "
        "column, a row is valid until the next one of its keys",
    )

    @property
    def validity(self) -> tuple[str, ...]:
        """The columns that say when a row is valid."""
        return (self.valid_from, self.valid_to) if self.valid_to else (self.valid_from,)


class RawSource(Frozen):
    """One source of raw data. A period of features needs its data of that period and of the time `trailing` before.

    All of it is read with exactly the declared columns and types. By default, a period is one Parquet file.
    """

    name: Name = Field(description="folder and file name of its raw files, unless `files.path` says otherwise")
    columns: Mapping[NonEmptyStr, RawColumn] = Field(
        min_length=1, description="its columns by name: the type of each, or a `RawColumn`"
    )
    extra_columns: Literal["ignore", "refuse"] = Field(
        "ignore", description="what happens to columns of a file that are not declared"
    )
    files: RawFiles = Field(
        RawFiles(), description="how its files are delivered, if not as one Parquet file per period"
    )
    query: RawQuery | None = Field(None, description="instead of files: a query on a SQL database")
    table: RawTable | None = Field(None, description="instead of files: a table of Delta or Iceberg")
    is_register: bool = Field(
        False, description="one file for all periods, such as a list of shops, instead of one each"
    )
    trailing: DurationText = Field(
        Duration(0, "d"),
        description="how far back before a period its features need files too, such as 7d; of a register with history: "
        "how far back are the events at which they ask for it",
    )
    rebuild_on_change: bool = Field(
        True,
        description="one file for all days: whether days that are built already are stale when it changes; False for a "
        "register that only grows, whose days are to keep what was known when they were built",
    )
    history: HistoryColumns | None = Field(
        None, description="one file for all days, with columns that say when each of its rows is valid"
    )
    known_at: NonEmptyStr | None = Field(
        None,
        description="column with the instant at which a row was known: `evergreen check --period` leaves out what was "
        "known later, and the features of earlier moments have to stay as they are",
    )
    empty_periods: Literal["refused", "delivered", "absent"] = Field(
        "refused",
        description="periods without rows: a fault; or allowed, with a file without rows; or allowed, and the file may "
        "be absent too",
    )
    absent_after_hours: int = Field(
        24,
        ge=1,
        description='with `empty_periods="absent"`: hours after the end of a period, until which its file may arrive',
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.trailing and self.is_register and not self.history:
            raise ValueError("trailing needs a file per period, or a history: leave it out")
        if self.trailing.length > _LONGEST_TRAILING:
            raise ValueError(f"trailing is {self.trailing}, and at most 366d")
        if self.history and not self.is_register:
            raise ValueError("history needs is_register=True: leave one of them out")
        if not self.is_register and not self.rebuild_on_change:
            raise ValueError("rebuild_on_change=False needs is_register=True: a corrected period is always built again")
        if self.empty_periods != "refused" and self.is_register:
            raise ValueError(f"empty_periods={self.empty_periods!r} needs a file per period: leave one of them out")
        if self.empty_periods != "absent" and "absent_after_hours" in self.model_fields_set:
            raise ValueError("absent_after_hours needs empty_periods='absent': leave one of them out")
        if self.known_at and (problem := _instant_problem(self.known_at, self.columns)):
            raise ValueError(f"known_at: {problem}")
        # Spark finds columns by name whatever the case of its letters.
        names = [name.lower() for name in self.columns]
        if duplicates := sorted({name for name in self.columns if names.count(name.lower()) > 1}):
            raise ValueError(f"columns {', '.join(duplicates)} differ only in case: rename all but one")
        if self.history and (problem := _history_problem(self.history, self.columns)):
            raise ValueError(f"history: {problem}")
        if len(self.model_fields_set & {"files", "query", "table"}) > 1:
            raise ValueError("files, query and table: a source comes from one of them, leave the others out")
        check_origin(self.origin, self.is_register)
        if isinstance(self.origin, RawFiles) and self.origin.format in TEXT_FORMATS:
            kinds = ("binary", "list") if self.origin.format == "csv" else ("binary",)
            if bad := [name for name, column in self.columns.items() if column.type.startswith(kinds)]:
                raise ValueError(
                    f"columns {', '.join(bad)}: {self.origin.format} has no {' and no '.join(kinds)}; declare string"
                )
        return self

    @property
    def has_dates_of_validity(self) -> bool:
        """Whether a history is one of days, not of instants."""
        return self.history is not None and self.columns[self.history.valid_from].type == "date32"

    @property
    def origin(self) -> Origin:
        """Where its data comes from."""
        return self.query or self.table or self.files

    @property
    def absence_hours(self) -> int | None:
        """Hours after the end of a day, until which its file may still arrive; None if it has to arrive."""
        return self.absent_after_hours if self.empty_periods == "absent" else None


def _instant_problem(name: str, columns: Mapping[str, RawColumn]) -> str | None:
    """Return why a column has no instants, or None."""
    if name not in columns:
        return f"{name} is not among the columns: declare it, or correct its spelling"
    if columns[name].type != "timestamp[us, tz=UTC]":
        return f"{name} is {columns[name].type}: declare timestamp[us, tz=UTC], or leave known_at out"
    return None


def _history_problem(history: HistoryColumns, columns: Mapping[str, RawColumn]) -> str | None:
    """Return why a history cannot be made of these columns, or None."""
    names = (*history.keys, *history.validity)
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        return f"{', '.join(duplicates)} has two roles: drop one"
    if unknown := [name for name in names if name not in columns]:
        return f"{', '.join(unknown)} is not among the columns: declare it, or correct its spelling"
    if nullable := [name for name in (*history.keys, history.valid_from) if columns[name].nullable]:
        return f"{', '.join(nullable)} may be null: declare nullable=False, without it no row can be found"
    for name in history.keys:
        if columns[name].type.startswith(("float", "list")):
            return f"{name} is {columns[name].type}, whose values are hardly ever equal: choose another key"
    for name in history.validity:
        if columns[name].type == "timestamp[us]":
            return f"{name} has no time zone: declare timestamp[us, tz=UTC], or date32 for days"
        if columns[name].type not in ("date32", "timestamp[us, tz=UTC]"):
            return f"{name} is {columns[name].type}: declare timestamp[us, tz=UTC], or date32 for days"
    if len({columns[name].type for name in history.validity}) > 1:
        return f"{' and '.join(history.validity)} have two types: declare both as instants, or both as days"
    return None


class FeatureSpec(Frozen):
    """The feature views that one model folder builds, for any number of models.

    `spine` names the table of examples: one row per prediction, with its keys, `event_timestamp` (when the prediction
    is made), `label`, and `label_known_at`.
    """

    period: str = Field(
        "1d",
        description="what one partition of features is about: `1d`; `1w`, from Monday; or whole hours or minutes that "
        "fit a day, such as `1h` or `15min`, which begin in UTC",
    )
    timezone: str = Field(description="days begin at midnight in this time zone")
    first_day: date = Field(description="no raw data exists before this day")
    last_day: date | None = Field(None, description="no raw data exists after this day")
    schedule: Cron | None = Field(
        None,
        description="cron, in `timezone`: when a run builds the periods that are over since the one before; None: when "
        "each period is over",
    )
    fresh_within: PositiveDuration | None = Field(
        None,
        description="time after the end of a period in which its features have to be published; later they are late: "
        "`evergreen status` says so, and [metrics](../guides/metrics.md) let Prometheus alert; None: never late",
    )
    sources: tuple[RawSource, ...] = Field(min_length=1, description="what raw data the features are built from")
    views: tuple[Name, ...] = Field(min_length=1, description="tables of features that `build` returns")
    spine: Name = Field(description="table of examples that `build` returns")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.last_day and self.last_day < self.first_day:
            raise ValueError(f"last_day {self.last_day} is before first_day {self.first_day}: swap them")
        if self.timezone not in available_timezones():
            raise ValueError(f"{self.timezone!r} is no IANA time zone: write one like 'America/New_York'")
        calendar = self.calendar
        for source in self.sources:
            if problem := _multiple_problem(f"trailing of {source.name}", source.trailing, calendar):
                raise ValueError(problem)
            if not source.is_register:
                check_template_period(source.name, source.files, calendar)
        for field, names in (("sources", [s.name for s in self.sources]), ("views", list(self.views))):
            if duplicates := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{field} names {', '.join(duplicates)} twice: drop one")
        if self.spine in self.views:
            raise ValueError(f"spine {self.spine!r} is also a view: the spine holds labels, name it once")
        return self

    @property
    def calendar(self) -> Calendar:
        """All periods of the model."""
        return Calendar(self.period, self.timezone)

    @property
    def first_period(self) -> str:
        """The first period of which there is data."""
        return self.calendar.first_of(self.first_day)

    @property
    def end_period(self) -> str | None:
        """The first period of which there is no data any more; None if data goes on."""
        return self.calendar.first_of(self.last_day + timedelta(1)) if self.last_day else None

    @property
    def cron(self) -> tuple[str, str]:
        """The schedule of the features DAG, and the time zone in which it is written."""
        if self.schedule:
            return self.schedule, self.timezone
        return self.calendar.cron, self.calendar.clock_timezone

    def interval_start(self, period: str) -> datetime:
        """Return the start of the data interval of the scheduled run that is about a period.

        It may be another one if the schedule is within the hour that clocks show twice.
        """
        calendar = self.calendar
        if not self.schedule:
            return calendar.start(period)
        end = calendar.end(period).astimezone(ZoneInfo(self.timezone))
        fire: datetime = croniter(self.schedule, end).get_prev(datetime)
        return fire.astimezone(UTC)

    def source(self, name: str) -> RawSource:
        """The source of this name."""
        return next(source for source in self.sources if source.name == name)

    @property
    def tables(self) -> tuple[str, ...]:
        """All tables of a published period."""
        return (self.spine, *self.views)


class Resources(Frozen, allow_inf_nan=False):
    """What one training attempt may use: a local process, or a pod."""

    cpu: int = Field(2, ge=1, description="CPUs, and threads of the trainer")
    memory_gib: float = Field(4, gt=0, description="memory, in GiB")
    gpu: int = Field(0, ge=0, description="GPUs")
    gpu_type: str | None = Field(
        None, description="type of GPU, as in the label of its nodes (`nvidia.com/gpu.product`)"
    )
    processes: int = Field(1, ge=1, description="started by torchrun; at most one per GPU")
    shm_gib: float = Field(1, gt=0, description="shared memory for data loaders and NCCL; part of memory_gib")
    timeout_minutes: int = Field(60, ge=1, description="a longer attempt is stopped")
    checkpoint_seconds: float = Field(
        60, gt=0, description="time between checkpoints: the most work that a preemption loses"
    )
    spot: bool = Field(True, description="may run on cheaper nodes that may be reclaimed")
    max_preemptions: int = Field(20, ge=0, description="restarts after preemption within one try of the task")
    node_selector: Mapping[str, str] = Field(default_factory=dict, description="labels of nodes it may run on")
    priority_class: str | None = Field(None, description="PriorityClass of the pod")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.gpu and self.processes > self.gpu:
            raise ValueError(f"processes is {self.processes} with {self.gpu} GPUs: give each process one")
        if self.gpu_type and not self.gpu:
            raise ValueError(f"gpu_type is {self.gpu_type!r} and gpu is 0: set gpu")
        if self.shm_gib > self.memory_gib:
            raise ValueError(f"shm_gib {self.shm_gib:g} is part of memory_gib {self.memory_gib:g}: raise that")
        return self

    def time_limit(self, startup_minutes: float) -> timedelta:
        """Return the time for all attempts of one try of the task: each waits for a node, starts, trains, and stops."""
        return timedelta(minutes=(self.max_preemptions + 1) * (2 * startup_minutes + self.timeout_minutes + 5))


class ApprovalPolicy(Frozen):
    """A person approves a candidate that passed its gates before it is promoted. No answer is a rejection."""

    timeout_hours: int = Field(24, ge=1, description="rejected without an answer within this time")
    approvers: tuple[NonEmptyStr, ...] = Field(
        (), description="Airflow users who may answer; empty: everyone who may edit the DAG"
    )


class MonitorPolicy(Frozen):
    """How a candidate that no gate rejects, but that cannot prove itself yet, gathers evidence on later days.

    It is the challenger. Each look is a test of all days so far. Looks that come more often promote hardly earlier, and
    each leaves less confidence to later candidates that are judged on the same days.
    """

    schedule: Cron | None = Field(
        None, description="when to look: cron, in the features' time zone; None: as the model's own `schedule`"
    )
    look_after: PositiveDuration = Field(Duration(7, "d"), description="time with new labels for another look")
    replaceable: bool = Field(
        False,
        description="train later candidates, too: one that is compared with the champion takes the place of the "
        "challenger, whose evidence and confidence are spent",
    )


class ScorePolicy(Frozen):
    """How the champion scores new periods in batch: as soon as their features are published, and by the clock."""

    schedule: Cron | None = Field(
        None, description="when to score, too: cron, in the features' time zone; None: as the model's own `schedule`"
    )
    columns: tuple[Name, ...] = Field(
        (),
        description="columns of the spine that are published with each prediction, besides the keys of its features "
        "and `event_timestamp`",
    )


class RetrainPolicy(Frozen):
    """What starts a retrain, besides `retrain_after` and a person.

    Alarms are those of monitoring. What they ask for is judged by the same gates as any other candidate.
    """

    schedule: bool = Field(
        True,
        description="the clock: `schedule` of the model. Without it, scheduled runs load new features into the online "
        "store, and train the first champion only",
    )
    alarms: tuple[Literal["break", "drift", "performance"], ...] = Field(
        (),
        description="kinds of alarms that ask for a retrain as of the newest data: a `break` or a `drift` of the "
        "champion's data, or a loss of its `performance` on matured labels",
    )
    cooldown: PositiveDuration = Field(
        Duration(7, "d"), description="time of data after which alarms may ask again, also one that is open still"
    )
    budget: int = Field(2, ge=1, description="how many retrains alarms may ask for in 30 days of data")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if duplicates := sorted({rule for rule in self.alarms if self.alarms.count(rule) > 1}):
            raise ValueError(f"alarms names {', '.join(duplicates)} twice: drop one")
        if limits := sorted(self.model_fields_set & {"cooldown", "budget"}) if not self.alarms else []:
            raise ValueError(f"{' and '.join(limits)} limit what alarms ask for: name alarms, or remove them")
        return self


class ModelSpec(Frozen):
    """Everything Evergreen needs to keep one model fresh."""

    name: Name = Field(description="name of the model and of its folder")
    owner: NonEmptyStr = Field(description="the team")
    description: str = Field("", description="what it predicts; shown in Airflow and in reports")

    features: FeatureSpec | Name = Field(description="its own features, or the name of the model that builds them")
    feature_service: Name = Field(description="the Feast feature service that lists its inputs")
    request_columns: tuple[Name, ...] = Field((), description="inputs that come with the request: columns of the spine")
    label: Name = Field("label", description="column of the spine to predict")
    kind: ModelKind | None = Field(
        None,
        description="what it predicts for a row: see [kinds of models](../guides/kinds.md); None: the probability of "
        "label 1 or a number, as the metrics of its gates say",
    )
    classes: Classes = Field(
        (),
        description='`kind="multiclass"`: the values of the label, texts or whole numbers, in the order in which the '
        "model returns their probabilities",
    )
    quantiles: Quantiles = Field(
        (), description='`kind="quantile"`: those that the model returns, in its order: from the lowest to the highest'
    )
    forecast: ForecastSeries | None = Field(
        None, description='`kind="forecast"`: the columns of the spine that name series and horizon, and the season'
    )
    query: Name | None = Field(
        None, description='`kind="ranking"`: column of the spine whose values name the rows that are ranked together'
    )

    weight: Name | None = Field(
        None,
        description="column of the spine that says how much each row counts, a number from 0 on, in training, metrics, "
        "comparisons and trivial models; None: all rows count alike",
    )

    target_transform: Literal["log", "log1p", "sqrt"] | None = Field(
        None,
        description="what is done to the label before `train.fit` sees it, and undone before predictions are judged or "
        "served: `log` (labels above 0), `log1p` (above -1) or `sqrt` (of at least 0)",
    )

    schedule: Cron = Field(description="when to retrain: cron, in the features' time zone")
    retrain_after: PositiveDuration | None = Field(
        None, description="also retrain when periods of features of this length, such as 7d, are new or corrected"
    )
    retrain_on: RetrainPolicy = Field(
        RetrainPolicy(), description="which alarms of monitoring ask for a retrain, and whether the clock does"
    )
    fresh_within: PositiveDuration | None = Field(
        None,
        description="greatest age of the champion's data; an older champion, or none, is late: `evergreen status` says "
        "so, and [metrics](../guides/metrics.md) let Prometheus alert; None: never late",
    )
    deadline: PositiveDuration | None = Field(
        None,
        description="time from the start of a retrain in the queue in which it should end; one that takes longer is a "
        "missed deadline in Airflow, and goes on; None: no deadline",
    )
    train: PositiveDuration = Field(
        Duration(52, "w"), description="time to train on, before the holdout; less if there is less"
    )
    holdout: PositiveDuration = Field(
        Duration(14, "d"), description="the last time of complete labels, on which models are judged"
    )
    label_delay: DurationText = Field(
        Duration(0, "d"),
        description="time until labels are complete: the holdout ends this long before `as_of`, and the time to train "
        "on this long before the holdout",
    )
    clusters: tuple[Name, ...] = Field(
        (DAY_CLUSTER,),
        min_length=1,
        max_length=2,
        description="which rows may differ together, the unit of every interval of a gate: `day`, the calendar day in "
        "the features' time zone, or the week if that is the period; a column of the spine, such as the entity that "
        "predictions are about; or both",
    )

    input_groups: Mapping[Name, Annotated[tuple[Name, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="inputs that the gate report measures as one, because they say nothing apart, such as latitude and "
        "longitude: by the name of the group, columns, or views for all of their features",
    )

    stale_features: Literal["refuse", "rebuild"] = Field(
        "refuse",
        description="what a retrain does about days of features that were made by other code, parameters or registers "
        "than they would be now: it fails and names them, or has the features DAG build them again",
    )

    parameters: Parameters = Field(
        default_factory=dict, description="passed to train.fit unchanged: what JSON can hold, text as keys"
    )
    seed: int = Field(0, ge=0, description="seed of all randomness in training")
    training_libraries: tuple[str, ...] = Field(
        (), description="packages of the trainer's environment whose versions the trained model depends on"
    )
    code_packages: tuple[ModulePath, ...] = Field(
        (),
        description="packages of your own outside the model folders: where features.py, expectations.py, train.py or "
        "a gate imports one, all of its code counts as the model's",
    )
    resources: Resources = Field(Resources(), description="what one training attempt may use")

    gates: tuple[Gate, ...] = Field(
        min_length=1, description="requirements for a candidate: all must pass, or the champion stays"
    )
    cooldown: DurationText = Field(Duration(0, "d"), description="time of data before a new champion can be replaced")
    keep_candidates_ready: bool = Field(
        False,
        description="train, judge and spend confidence also while the model is frozen or cooling down, so that a "
        "challenger is ready when that ends",
    )
    approval: ApprovalPolicy | None = Field(None, description="who approves a promotion; None: the gates decide")
    monitor: MonitorPolicy | None = Field(
        MonitorPolicy(),
        description="the DAG that watches the champion's data, and how a candidate gathers evidence for gates that "
        "compare with the champion; None: there is no such DAG, and the holdout decides",
    )
    auto_rollback: AutoRollbackPolicy | None = Field(
        None,
        description="when a champion that falls behind the one before it on matured labels is rolled back; None: a "
        "person decides",
    )
    score: ScorePolicy | None = Field(
        None, description="how the champion scores new periods in batch; None: it does not, and there is no such DAG"
    )

    def __init__(self, **fields: Any):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise SpecError(f"model {fields.get('name', '?')}", _validation_faults(error)) from None

    @model_validator(mode="after")
    def _check_gate_names(self) -> Self:
        names = [gate.name for gate in self.gates]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"gates: two are named {', '.join(duplicates)}; give one of them another name")
        return self

    @model_validator(mode="after")
    def _check_input_groups(self) -> Self:
        members = [member for group in self.input_groups.values() for member in group]
        if repeated := sorted({member for member in members if members.count(member) > 1}):
            raise ValueError(f"input_groups names {', '.join(repeated)} twice: an input is in one group at most")
        return self

    @model_validator(mode="after")
    def _check_score_columns(self) -> Self:
        if self.score and self.label in self.score.columns:
            raise ValueError(f"score.columns names {self.label}, the label, which new periods do not have: drop it")
        return self

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if faults := list(self._kind_faults()):
            raise PydanticCustomError(_FAULTS_ERROR, "what it predicts is not clear", {"faults": faults})
        return self

    def _kind_faults(self) -> Iterator[Fault]:
        """Yield what does not fit what the model predicts."""
        prediction = self.prediction_type
        for field, kind in _FIELDS_OF_KINDS.items():
            if getattr(self, field) and self.kind != kind:
                yield Fault(
                    field, f"is for a {kind} model, and kind is {self.kind!r}", f"add kind={kind!r}, or remove it"
                )
                return
        if self.weight and self.kind == "ranking":
            yield Fault(
                "weight", "is for models whose metrics are of rows, and a ranking's are of queries", "remove it"
            )
            return
        if self.target_transform and self.kind in ("binary", "multiclass", "ranking"):
            change = f"changes what labels measure, and those of a {self.kind} model measure nothing"
            yield Fault("target_transform", change, "remove it")
            return
        if prediction and (missing := missing_field(prediction, self.query, self.forecast)):
            yield Fault(missing, f"is missing, and kind is {self.kind!r}", _KIND_FIELDS[missing])
            return
        for number, gate in enumerate(self.gates):
            if problem := gate_kind_problem(gate, prediction):
                text, _, fix = problem.partition(": ")
                yield Fault(f"gates.{number}", text, fix)

    @model_validator(mode="after")
    def _check_clusters(self) -> Self:
        if len(set(self.clusters)) < len(self.clusters):
            raise ValueError(f"clusters names {self.clusters[0]} twice: drop one")
        compares = any(isinstance(gate, PairedComparisonGate) for gate in self.gates)
        if compares and DAY_CLUSTER in self.clusters and self.holdout.length < timedelta(MIN_CLUSTERS):
            raise ValueError(
                f"holdout is {self.holdout}, and gates that compare need {MIN_CLUSTERS} days at the very "
                "least, because rows of a day may differ together: raise it, best to 14d"
            )
        return self

    @model_validator(mode="after")
    def _check_retrain_on(self) -> Self:
        if self.retrain_on.alarms and not self.monitor:
            raise ValueError("retrain_on.alarms needs the DAG that watches the champion: do not set monitor=None")
        if not (self.retrain_on.schedule or self.retrain_on.alarms or self.retrain_after):
            raise ValueError("retrain_on leaves nothing that starts a retrain: name alarms, or set schedule=True")
        return self

    @model_validator(mode="after")
    def _check_auto_rollback(self) -> Self:
        if self.auto_rollback is None:
            return self
        is_monitored = self.monitor is not None
        faults = auto_rollback.find_faults(
            self.auto_rollback, self.gates, self.prediction_type, is_monitored=is_monitored
        )
        if listed := list(faults):
            raise PydanticCustomError(_FAULTS_ERROR, "no rollback can be decided", {"faults": listed})
        return self

    @model_validator(mode="after")
    def _check_durations(self) -> Self:
        if isinstance(self.features, FeatureSpec):
            self.check_period(self.features.calendar)
        return self

    def check_period(self, calendar: Calendar) -> None:
        """Check that all durations are whole numbers of periods, and that there are enough clusters.

        Raises:
            ValueError: one is not.
        """
        durations = {
            "train": self.train,
            "holdout": self.holdout,
            "label_delay": self.label_delay,
            "cooldown": self.cooldown,
            "retrain_after": self.retrain_after,
            "retrain_on.cooldown": self.retrain_on.alarms and self.retrain_on.cooldown,
            "monitor.look_after": self.monitor and self.monitor.look_after,
            "auto_rollback.within": self.auto_rollback and self.auto_rollback.within,
            "auto_rollback.budget_time": self.auto_rollback and self.auto_rollback.budget_time,
        }
        problems = [_multiple_problem(name, duration, calendar) for name, duration in durations.items() if duration]
        if self.auto_rollback:
            problems.append(auto_rollback.days_problem(self.auto_rollback, calendar))
        if named := list(filter(None, problems)):
            raise ValueError("; ".join(named))
        compares = any(isinstance(gate, PairedComparisonGate) for gate in self.gates)
        if calendar.unit == "week" and compares and calendar.count_in(self.holdout) < MIN_CLUSTERS:
            raise ValueError(
                f"holdout is {self.holdout}, and gates that compare need {MIN_CLUSTERS} weeks at the very least, "
                f"because rows of a week may differ together: raise it, best to {2 * MIN_CLUSTERS}w"
            )

    @property
    def prediction_type(self) -> PredictionType | None:
        """What it predicts for each row; None if the spec declares no kind."""
        if self.kind is None:
            return None
        return PredictionType(kind=self.kind, classes=self.classes, quantiles=self.quantiles)

    @property
    def history(self) -> tuple[Duration, ...]:
        """The durations, backwards from `as_of`, that a retrain uses."""
        return (self.label_delay, self.holdout, self.label_delay, self.train)

    @property
    def gathers_evidence(self) -> bool:
        """Whether a candidate may gather evidence on later days, which `<model>.monitor` looks at."""
        return self.monitor is not None and any(isinstance(gate, AgainstChampionGate) for gate in self.gates)

    @property
    def builds_features(self) -> bool:
        return isinstance(self.features, FeatureSpec)

    @property
    def feature_model(self) -> str:
        """Name of the model folder that builds this model's features."""
        return self.name if isinstance(self.features, FeatureSpec) else self.features


_FIXES = {"extra_forbidden": "remove it, or correct its spelling", "missing": "add it"}


def _validation_faults(error: ValidationError) -> list[Fault]:
    """Return one fault per field, with its path; of a union, only the faults of the member that was meant."""
    faults = []
    details = error.errors(include_url=False)
    paths = [detail["loc"] for detail in details]
    for detail in details:
        depth = len(detail["loc"])
        if detail["type"] == "too_short" and any(p[:depth] == detail["loc"] and p[depth:] for p in paths):
            continue  # the list is short because an item of it is invalid, which has a fault of its own
        path = [str(part) for part in detail["loc"]]
        if detail["type"] in (PARAMETERS_ERROR, _FAULTS_ERROR):
            faults += [
                Fault(".".join(filter(None, (*path, fault.location))), fault.problem, fault.fix)
                for fault in detail["ctx"]["faults"]
            ]
            continue
        if path[:1] == ["features"] and len(path) > 1:
            if path[1] == "constrained-str":
                continue  # the features are a table, not another model's name
            path.pop(1)
        if path[:1] == ["gates"] and len(path) > 2:
            path.pop(2)  # the kind of the gate, which the user did not write
        problem = detail["msg"].removeprefix("Value error, ")
        problem = problem[0].lower() + problem[1:]
        if detail["type"] not in ("missing", "value_error"):
            problem += f", got {detail['input']!r}"
        faults.append(Fault(".".join(path) or "MODEL", problem, _FIXES.get(detail["type"], "")))
    return faults
