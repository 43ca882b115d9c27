"""What a model could be, guessed from what the columns of a sample look like. Pure.

A guess is for the person who reads the files to correct, so each has its reason in a note. What cannot be guessed, and
what would be a model that learns nothing or too much, is refused or left out, by name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from difflib import get_close_matches
from itertools import combinations
from typing import Any, Literal

from evergreen.errors import Fault
from evergreen.periods import Calendar, Duration
from evergreen.scaffold.files import ScaffoldError

Role = Literal["time", "label", "query", "key", "identifier", "number", "category", "leak", "none"]

MAX_KEYS = 2
MAX_CATEGORIES = 20
_MIN_ROWS_PER_KEY = 5
_LONGEST_HISTORY = timedelta(days=358)  # a source is read for a period more, and 366 days at most
_LONGEST_TRAILING = Duration(366, "d")
_YEAR = 52
_PRESENT_SHARE = 0.8  # of periods; series may begin late, and have gaps
_UNIQUE_ROWS = 0.99  # clocks that are set back repeat an hour
_MIN_IDENTIFIED_ROWS = 20  # in fewer rows any column may be unique by chance
_UNIQUE_SHARE = 0.95
_MIN_CONSTANT_SPAN = timedelta(14)  # of a few days, what is the same may differ in the next
_LEAK_CORRELATION = 0.999
_LEAK_AUC = 0.99
_RESERVED = {"day", "period", "event_timestamp", "label_known_at", "label", "weekday", "hour", "evergreen_row"}
_IDENTIFIER_NAME = re.compile(
    r"(^|[_\W])(?i:id|key|code|nr|no|num|number|sku|zip|uuid)$|(?<=[a-z])(Id|ID|Key|Code|Nr|No)$"
)
_POSITIVE_VALUES = ("true", "yes", "y", "t", "1", "ja", "oui", "si", "bad", "late", "fraud", "churned")


@dataclass(frozen=True)
class ColumnProfile:
    """What a sample shows of a column; `declared` is the type to declare, None if there is none for its values."""

    name: str
    declared: str | None
    null_count: int = 0
    distinct_count: int = 0
    minimum: Any = None
    maximum: Any = None
    values: tuple[Any, ...] = ()
    """All values, the most frequent first, if they are few."""

    @property
    def is_number(self) -> bool:
        return (self.declared or "").startswith(("int", "float", "decimal"))

    @property
    def is_time(self) -> bool:
        return (self.declared or "").startswith(("timestamp", "date32"))


@dataclass(frozen=True)
class SampleProfile:
    """The columns of a sample, in its order."""

    row_count: int
    columns: tuple[ColumnProfile, ...]

    def column(self, name: str) -> ColumnProfile:
        return next(column for column in self.columns if column.name == name)

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]


@dataclass(frozen=True)
class LabelRelation:
    """What a column alone says about the label: how well it tells two classes apart, and how it goes with a number."""

    auc: float = 0.5
    correlation: float = 0.0

    @property
    def is_leak(self) -> bool:
        """Whether it says nearly all, which is seldom known before the label is."""
        return abs(self.auc - 0.5) > _LEAK_AUC - 0.5 or abs(self.correlation) > _LEAK_CORRELATION


@dataclass(frozen=True)
class KindDefaults:
    """A kind of model: how it is trained, and what it has to show."""

    name: str
    objective: str
    baseline_metric: str
    champion_metric: str
    statistic: str
    """What the mean of the label is called, in names of features; of classes, the mean of being one of them."""
    eval_metric: str
    """XGBoost's name of the loss that it prints."""

    @property
    def is_of_numbers(self) -> bool:
        """Whether labels are amounts, and differences between them mean something."""
        return self.name in ("regression", "quantile")


MODEL_KINDS = {
    kind.name: kind
    for kind in (
        KindDefaults("binary", "binary:logistic", "log_loss", "auc", "rate", "logloss"),
        KindDefaults("multiclass", "multi:softprob", "log_loss", "log_loss", "share", "mlogloss"),
        KindDefaults("regression", "reg:squarederror", "rmse", "rmse", "mean", "rmse"),
        KindDefaults("quantile", "reg:quantileerror", "quantile_loss", "quantile_loss", "mean", "quantile"),
        KindDefaults("forecast", "reg:squarederror", "mae", "mase", "mean", "mae"),
        KindDefaults("ranking", "rank:ndcg", "ndcg", "ndcg", "mean", "ndcg"),
    )
}
QUANTILES = (0.1, 0.5, 0.9)
ONLY_SERIES = "series"
"""The column that names the series of a forecast, where no key does."""
_MAX_HORIZON = 100


@dataclass(frozen=True)
class Choices:
    """What a person decided; None: to be guessed."""

    label: str
    time: str | None = None
    timezone: str | None = None
    kind: str | None = None
    positive: str | None = None
    keys: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()
    period: str | None = None
    label_delay: str | None = None
    quantiles: tuple[float, ...] = ()
    query: str | None = None
    horizon: int | None = None
    season: int | None = None


@dataclass(frozen=True)
class DraftColumn:
    """A column of the source, and what the model makes of it."""

    raw_name: str
    name: str
    """Of its feature: lower-case letters, digits and `_`."""
    type: str
    is_nullable: bool
    role: Role
    comment: str = ""
    categories: tuple[Any, ...] = ()
    is_never_negative: bool = False


@dataclass(frozen=True)
class EventsDraft:
    """A source of events beside the sample, and the view of what happened to a key."""

    source: str
    view: str
    key: str
    """Feature of the sample by which events are joined."""
    columns: tuple[DraftColumn, ...]
    windows: Mapping[str, int]
    """How far back events are summarized: the number of periods, by what it is called in names of features."""
    has_gaps: bool

    def columns_of(self, *roles: Role) -> list[DraftColumn]:
        """Return the columns with one of these roles, in order."""
        return [column for column in self.columns if column.role in roles]

    @property
    def time(self) -> DraftColumn:
        """The column that says when an event happened."""
        return self.columns_of("time")[0]


@dataclass(frozen=True)
class ModelDraft:
    """A model to be written, and notes for the person who wants it."""

    kind: KindDefaults
    calendar: Calendar
    columns: tuple[DraftColumn, ...]
    positive: Any
    """Of a binary model: the value of the label that is predicted; None if the label is a number."""
    label_delay: Duration
    window: Duration
    holdout: Duration
    margin: float
    first_day: date
    last_day: date
    has_gaps: bool
    are_keys_dense: bool
    quantiles: tuple[float, ...] = ()
    horizon: int = 0
    """Of a forecast: up to how many periods it is ahead."""
    season: int = 1
    """Of a forecast: the number of periods after which values are alike."""
    constant_inputs: frozenset[str] = frozenset()
    """Of `weekday` and `hour`: those that are the same in all rows, so that nothing can be learned from them."""
    overlapping_key: str = ""
    """The key of which labels of neighbouring periods overlap, because each tells of more than a period."""
    events: tuple[EventsDraft, ...] = ()
    lead: int = 0
    """The number of periods, before the sample's first, of which there are events and no examples."""
    notes: tuple[str, ...] = field(default=())

    def columns_of(self, *roles: Role) -> list[DraftColumn]:
        """Return the columns with one of these roles, in order."""
        return [column for column in self.columns if column.role in roles]

    @property
    def key_names(self) -> list[str]:
        """The features by which rows have a history."""
        return [column.name for column in self.columns_of("key")]


def guess_time(profile: SampleProfile, ignored: Collection[str] = ()) -> str | None:
    """Return the column that says when a row happened: of those with times, one without nulls, the first in order."""
    times = [c for c in profile.columns if c.is_time and c.name not in ignored and c.distinct_count > 1]
    return min(times, key=lambda column: column.null_count).name if times else None


def guess_kind(label: ColumnProfile) -> str | None:
    """Return the kind of model that predicts a label, None if there is none."""
    if label.distinct_count == 2:
        return "binary"
    if label.is_number:
        return "regression"
    return "multiclass" if label.declared == "string" and label.distinct_count <= MAX_CATEGORIES else None


def guess_positive(label: ColumnProfile) -> Any:
    """Return the value that a model of two classes predicts the probability of: one that says yes, or the rarer one."""
    for value in label.values:
        if str(value).strip().lower() in _POSITIVE_VALUES or value == 1:
            return value
    return label.values[-1]


def guess_period(weekday_count: int, row_count: int) -> str:
    """Return the length of periods: weeks if all rows are of one day of the week, else days."""
    return "1w" if weekday_count == 1 and row_count > 1 else "1d"


def guess_keys(profile: SampleProfile, excluded: Collection[str]) -> tuple[str, ...]:
    """Return columns whose values come again often enough to have a history: those called so first, then the finest."""
    candidates = [
        column
        for column in profile.columns
        if column.name not in excluded
        and 1 < column.distinct_count <= profile.row_count / _MIN_ROWS_PER_KEY
        and (column.declared == "string" or is_code(column))
    ]
    candidates.sort(key=lambda column: (not _IDENTIFIER_NAME.search(column.name), -column.distinct_count))
    return tuple(column.name for column in candidates[:MAX_KEYS])


def series_candidates(profile: SampleProfile, excluded: Collection[str]) -> tuple[str, ...]:
    """Return columns that may name the series of a forecast: texts and whole numbers that come again.

    Those that are called so come first, then the finest.
    """
    candidates = [
        column
        for column in profile.columns
        if column.name not in excluded
        and 1 < column.distinct_count <= profile.row_count / 2
        and (column.declared or "").startswith(("string", "int"))
    ]
    candidates.sort(key=lambda column: (not _IDENTIFIER_NAME.search(column.name), -column.distinct_count))
    return tuple(column.name for column in candidates)


def guess_series(
    candidates: Sequence[str],
    coverage: Mapping[str, float],
    unique_share: Callable[[Sequence[str]], float],
    *,
    is_one_per_period: bool,
) -> tuple[str, ...]:
    """Return the fewest columns that name the series of a forecast; none if all rows are one.

    The values of such a column are there in nearly every period, unlike those of a weekday, of the weather or of a
    promotion. With them, nearly every row is the only one of its time.

    Args:
        candidates: `series_candidates`.
        coverage: In how many of all periods a value of each candidate has rows, on average, 0 to 1.
        unique_share: The number of times, with values of these columns, by the number of rows, 0 to 1.
        is_one_per_period: Whether no period has several rows.

    Raises:
        ScaffoldError: there may be series, but it cannot be said which columns name them.
    """
    if is_one_per_period or not candidates:
        return ()
    present = [name for name in candidates if coverage[name] >= _PRESENT_SHARE]
    has_many_per_time = unique_share(()) < _UNIQUE_ROWS
    for count in range(1, MAX_KEYS + 1) if has_many_per_time else ():
        for names in combinations(present, count):
            if unique_share(names) >= _UNIQUE_ROWS:
                return names
    if not has_many_per_time and not present:
        return ()
    problem = f"is missing, and which of {_quoted(candidates)} name a series cannot be said: "
    if not has_many_per_time:
        problem += f"each row has a time of its own, but values of {_quoted(present)} are in nearly every period"
    else:
        problem += f"no {MAX_KEYS} of them that have each value in nearly every period tell rows of one time apart"
    fix = "name one or two with --key, whose rows in a period are added up; with --ignore for each, all rows are one"
    raise ScaffoldError("sample", [Fault("--key", problem, fix)])


def is_code(column: ColumnProfile) -> bool:
    """Whether whole numbers are names of things, and no amounts, by the name of their column."""
    return (column.declared or "").startswith("int") and bool(_IDENTIFIER_NAME.search(column.name))


def is_identifier(column: ColumnProfile, row_count: int) -> bool:
    """Whether nearly each row has a value of its own, so that nothing can be learned from it."""
    if column.declared != "string" and not is_code(column):
        return False
    count = row_count - column.null_count
    return count >= _MIN_IDENTIFIED_ROWS and column.distinct_count >= _UNIQUE_SHARE * count


def feature_names(names: Iterable[str], reserved: Collection[str] = ()) -> dict[str, str]:
    """Return a name for each column that features may have: lower-case letters, digits and `_`, a letter first."""
    all_reserved = _RESERVED.union(reserved)
    names_so_far, result = set(all_reserved), {}
    for number, name in enumerate(names, start=1):
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("ß", "ss"))
        plain = unicodedata.normalize("NFKD", spaced).encode("ascii", "ignore").decode().lower()
        plain = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:40].strip("_") or f"column_{number}"
        if not plain[0].isalpha():
            plain = f"column_{plain}"
        candidate, suffix = plain, 2
        if candidate in all_reserved:
            candidate = f"{plain}_value"
        while candidate in names_so_far:
            candidate, suffix = f"{plain}_{suffix}", suffix + 1
        names_so_far.add(candidate)
        result[name] = candidate
    return result


def check_choices(profile: SampleProfile, choices: Choices) -> None:
    """Check that what a person chose is in the sample, and can be what it was chosen for.

    Raises:
        ScaffoldError: it is not; has everything that is wrong.
    """
    faults = []
    named = [("--label", choices.label), ("--time", choices.time)]
    named += [("--query-column", choices.query)]
    named += [("--key", name) for name in choices.keys or ()] + [("--ignore", name) for name in choices.ignored]
    for option, name in named:
        if name is not None and name not in profile.names:
            similar = get_close_matches(name, profile.names, n=1)
            fix = f"did you mean {similar[0]!r}?" if similar else f"it has {', '.join(map(repr, profile.names))}"
            faults.append(Fault(f"{option} {name!r}", "the sample has no such column", fix))
    if faults:
        raise ScaffoldError("sample", faults)
    if not profile.row_count:
        raise ScaffoldError("sample", [Fault("rows", "there are none", "take a sample with a few weeks of data")])
    faults += _label_faults(profile.column(choices.label), choices)
    time = choices.time or guess_time(profile, (choices.label, *choices.ignored))
    if time is None:
        problem = "no column has times of more than one moment, and features are of what was known at a time"
        faults.append(Fault("--time", problem, "name a column of dates or timestamps, or convert one from text"))
    elif not profile.column(time).is_time:
        problem = f"is {profile.column(time).declared or 'of no type that can be declared'}, and no date or timestamp"
        faults.append(
            Fault(f"--time {time!r}", problem, "name another, or write times in ISO 8601: 2026-01-31T08:00:00Z")
        )
    elif profile.column(time).declared == "timestamp[us]" and choices.timezone is None:
        problem = "has no time zone, so nobody knows which instants these are"
        fix = "say --timezone Europe/Berlin, or UTC: that of the clock that wrote them"
        faults.append(Fault(f"--time {time!r}", problem, fix))
    if choices.query is not None:
        faults += _query_faults(profile.column(choices.query), (choices.label, time))
    if choices.label == time:
        faults.append(Fault(f"--label {time!r}", "is the time of the rows", "name another column as the time"))
    for name in choices.keys or ():
        column = profile.column(name)
        if name in (choices.label, time, choices.query):
            faults.append(
                Fault(f"--key {name!r}", "is the label or the time of the rows, or their query", "name another column")
            )
        elif not (column.declared or "").startswith(("int", "string")):
            problem = f"is {column.declared or 'of no type that can be declared'}, whose values are no good keys"
            faults.append(Fault(f"--key {name!r}", problem, "name a column of text or whole numbers"))
    if faults:
        raise ScaffoldError("sample", faults)


def _query_faults(query: ColumnProfile, other_roles: Collection[str | None]) -> Iterable[Fault]:
    place = f"--query-column {query.name!r}"
    if query.name in other_roles:
        yield Fault(place, "is the label or the time of the rows", "name another column")
    elif not (query.declared or "").startswith(("int", "string")):
        problem = f"is {query.declared or 'of no type that can be declared'}, whose values name no queries"
        yield Fault(place, problem, "name a column of text or whole numbers")


def _label_faults(label: ColumnProfile, choices: Choices) -> Iterable[Fault]:
    place = f"--label {label.name!r}"
    if label.declared is None or label.is_time or label.declared.startswith(("list", "binary")):
        yield Fault(
            place, "has values of a type that cannot be predicted", "name a column of numbers, text or booleans"
        )
    elif label.distinct_count < 2:
        value = repr(label.minimum) if label.distinct_count else "no value"
        problem = f"has {value} in all rows: there is nothing to learn"
        yield Fault(place, problem, "take a longer sample, or another column")
    elif choices.kind is not None and choices.kind not in MODEL_KINDS:
        yield Fault(f"--kind {choices.kind!r}", "is no kind of model", f"write one of {', '.join(MODEL_KINDS)}")
    elif choices.kind in ("regression", "quantile", "forecast", "ranking") and not label.is_number:
        yield Fault(
            place, f"is {label.declared}, and a model of kind {choices.kind} predicts numbers", "leave --kind out"
        )
    elif choices.kind == "multiclass" and not (
        (label.declared or "").startswith(("int", "string")) and 2 <= label.distinct_count <= MAX_CATEGORIES
    ):
        classes = f"classes are 2 to {MAX_CATEGORIES} texts or whole numbers"
        problem = f"has {label.distinct_count} values of {label.declared}: {classes}"
        yield Fault(place, problem, "say --positive VALUE, which is told from all others, or name another column")
    elif choices.kind == "ranking" and label.minimum < 0:
        problem = f"is {label.minimum} in a row, and says how relevant a row is, from 0 on"
        yield Fault(place, problem, "name a column of what was clicked, bought or rated")
    elif choices.kind == "binary" and choices.positive is None and label.distinct_count != 2:
        problem = f"has {label.distinct_count} values, and a binary model predicts one of two"
        yield Fault(place, problem, "say --positive VALUE, which is told from all others")
    elif choices.kind is None and choices.positive is None and guess_kind(label) is None:
        problem = f"has {label.distinct_count} values that are no numbers"
        yield Fault(place, problem, "say --positive VALUE, which is told from all others")
    yield from _option_faults(choices)
    if choices.positive is not None and not _matching(choices.positive, label):
        values = ", ".join(map(str, label.values or (label.minimum, "…", label.maximum)))
        yield Fault(f"--positive {choices.positive!r}", f"is no value of {label.name!r}", f"it has {values}")


def _option_faults(choices: Choices) -> Iterable[Fault]:
    """Yield options that belong to another kind, or that a kind needs."""
    if choices.kind == "ranking" and choices.query is None:
        yield Fault("--query-column", "is missing", "name the column whose values say which rows are ranked together")
    options = (
        ("--query-column", choices.query, "ranking"),
        ("--quantile", choices.quantiles, "quantile"),
        ("--horizon", choices.horizon is not None, "forecast"),
        ("--season", choices.season is not None, "forecast"),
        ("--positive", choices.positive, "binary"),
    )
    for option, value, kind in options:
        if value and choices.kind != kind and not (option == "--positive" and choices.kind is None):
            yield Fault(option, f"is of the kind {kind}", f"say --kind {kind}, too, or leave it out")
    if choices.quantiles and (len(set(choices.quantiles)) < 2 or not all(0 < value < 1 for value in choices.quantiles)):
        problem = f"has {', '.join(map(str, choices.quantiles))}"
        yield Fault("--quantile", problem, "give two or more between 0 and 1, such as --quantile 0.1 --quantile 0.9")


def guess_horizon(calendar: Calendar) -> int:
    """Return how many periods ahead a forecast is: a week of days, four weeks, and a day of shorter periods.

    Of periods so short that a day has too many, it is as many as are possible.
    """
    return {"day": 7, "week": 4}.get(calendar.unit) or min(_natural_season(calendar), _MAX_HORIZON)


def guess_season(calendar: Calendar, span: int, delay: Duration) -> int:
    """Return after how many periods values are alike: a week of days, a year of weeks, a day of shorter periods.

    It is 1, which is none, if the sample of `span` periods has not two of them before a holdout, or if features cannot
    look back so far, because labels have a delay.
    """
    season = _natural_season(calendar)
    is_covered = span >= 2 * season + calendar.count_in(_holdout(calendar, span))
    return season if is_covered and season <= _longest_window(calendar, delay) else 1


def _natural_season(calendar: Calendar) -> int:
    return {"day": 7, "week": _YEAR}.get(calendar.unit) or calendar.count_in(Duration(1, "d"))


def check_forecast(calendar: Calendar, span: int, horizon: int, season: int, delay: Duration) -> None:
    """Check how far ahead, and by what season, values of a sample of `span` periods can be predicted.

    Raises:
        ScaffoldError: they cannot; has everything that is wrong.
    """
    faults = []
    if not 1 <= horizon <= _MAX_HORIZON:
        problem = f"is {horizon}, and each value becomes so many rows: 1 to {_MAX_HORIZON} are possible"
        faults.append(Fault("--horizon", problem, f"count {calendar.unit}s, or take a longer --period"))
    longest = _longest_window(calendar, delay)
    if not 1 <= season <= longest:
        problem = f"is {season} {calendar.unit}s, and features may look back a year: 1 to {longest} are possible"
        faults.append(Fault("--season", problem, "say --season 1 if values do not come again"))
    elif season > 1 and span < 2 * season:
        problem = f"is {season} {calendar.unit}s, and the sample covers {span}: less than two seasons"
        faults.append(Fault("--season", problem, "take a longer sample, or say --season 1"))
    if faults:
        raise ScaffoldError("sample", faults)


def horizon_name(calendar: Calendar) -> str:
    """Return the column that says how many periods ahead a forecast is."""
    return f"{calendar.unit}s_ahead"


def resolve_kind(label: ColumnProfile, choices: Choices) -> KindDefaults:
    """Return the kind that a person chose, or that the label suggests."""
    guess = "binary" if choices.positive is not None else guess_kind(label)
    return MODEL_KINDS[choices.kind or guess or "regression"]


def resolve_leak_class(label: ColumnProfile, choices: Choices) -> Any:
    """Return the value of the label that columns are suspected to tell: of many classes, that of most rows."""
    if resolve_kind(label, choices).name == "multiclass":
        return label.values[0] if label.values else label.minimum
    return resolve_positive(label, choices)


def resolve_positive(label: ColumnProfile, choices: Choices) -> Any:
    """Return the value of the label that a binary model predicts, None for another kind."""
    if choices.positive is not None:
        return _matching(choices.positive, label)[0]
    return guess_positive(label) if resolve_kind(label, choices).name == "binary" else None


def _matching(text: str, label: ColumnProfile) -> list[Any]:
    """Return the values of a label that a person writes so; of many values, one of their type."""
    if label.values:
        return [value for value in label.values if str(value).casefold() == text.casefold()]
    try:
        return [type(label.minimum)(text)]
    except (TypeError, ValueError, ArithmeticError):
        return []


def draft_model(
    profile: SampleProfile,
    choices: Choices,
    relations: Mapping[str, LabelRelation],
    calendar: Calendar,
    periods: Sequence[str],
    label_deviation: float,
    constant_inputs: Collection[str] = (),
    is_panel: Callable[[str], bool] = lambda _: False,
) -> ModelDraft:
    """Return a model of checked choices.

    Args:
        profile: The columns of the sample.
        choices: What a person decided; `time` is set, and `keys` if a forecast has several series.
        relations: What each column says about the label.
        calendar: The periods of the model.
        periods: Those that have rows, in order.
        label_deviation: Standard deviation of the label.
        constant_inputs: Of `weekday` and `hour`: those that are the same in all rows.
        is_panel: Whether each value of a key has one row in most periods.

    Raises:
        ScaffoldError: no row has a time.
    """
    assert choices.time
    if not periods:
        raise ScaffoldError("sample", [Fault(f"--time {choices.time!r}", "has no value", "name another column")])
    notes: list[str] = []
    label = profile.column(choices.label)
    positive = resolve_positive(label, choices)
    kind = resolve_kind(label, choices)
    is_forecast = kind.name == "forecast"
    # Other columns of a forecast are no inputs, so none can tell too much.
    leaks = {name for name, relation in relations.items() if relation.is_leak and not is_forecast} - {
        *(choices.time, choices.query),
        *choices.ignored,
    }
    identifiers = {column.name for column in profile.columns if is_identifier(column, profile.row_count)}
    keys = choices.keys
    if keys is None and is_forecast:
        keys = ()
    elif keys is None:
        excluded = {choices.label, choices.time, *choices.ignored, *leaks, *identifiers, choices.query or ""}
        keys = guess_keys(profile, excluded)
    span = calendar.count(periods[0], periods[-1]) + 1
    has_gaps = len(periods) < span
    no_delay = Duration(0, "d") if is_forecast else Duration.parse(calendar.period)
    delay = Duration.parse(choices.label_delay) if choices.label_delay else no_delay
    window, holdout = _window(calendar), _holdout(calendar, span)
    horizon, season = choices.horizon or 0, choices.season or 1
    if is_forecast:
        horizon = guess_horizon(calendar) if choices.horizon is None else choices.horizon
        season = guess_season(calendar, span, delay) if choices.season is None else choices.season
        check_forecast(calendar, span, horizon, season, delay)
        window = _seasonal_window(calendar, season, delay)
    length = Duration.parse(calendar.period).length
    repeated = () if is_forecast or delay.length <= length else tuple(filter(is_panel, keys))
    reserved = _forecast_names(profile, choices, calendar, window) if is_forecast else ()
    has_late_labels = bool(delay) and not is_forecast
    columns = _draft_columns(
        profile, choices, keys, leaks - {*keys}, identifiers, reserved, has_late_labels=has_late_labels
    )
    by_role = {role: [c.raw_name for c in columns if c.role == role] for role in ("leak", "identifier", "category")}
    if positive is not None:
        notes.append(f"label: the probability that {label.name!r} is {positive!r} (--positive names another value)")
    if kind.name == "multiclass":
        notes.append(
            f"label: a probability for each of {len(label.values)} classes (--positive names one to tell apart)"
        )
    if nulls := profile.column(choices.time).null_count:
        notes.append(f"time: {nulls:,} rows have none, and are left out")
    if label.null_count:
        notes.append(f"label: {label.null_count:,} rows have none, and are not trained on")
    if by_role["leak"]:
        notes.append(f"suspected leaks, left out because they tell the label: {_quoted(by_role['leak'])}")
    if by_role["identifier"]:
        notes.append(f"identifiers, left out because nearly each row has its own: {_quoted(by_role['identifier'])}")
    if is_forecast:
        series = _quoted(keys) if keys else "all rows are one"
        season_note = f"a season of {season}" if season > 1 else "no season"
        notes.append(f"series: {series} (--key names others); rows of a series and a {calendar.unit} are added up")
        notes.append(
            f"forecasts up to {horizon} {calendar.unit}s ahead, with {season_note} (--horizon, --season): other "
            "columns are no inputs, because they are known no earlier than the value"
        )
        notes += _forecast_notes(calendar, choices, horizon, holdout, delay)
    elif keys:
        notes.append(f"keys with a history: {_quoted(keys)} (--key names others)")
    else:
        notes.append("keys: no column has values that come again, so the history is that of all rows together")
    notes.append(f"periods of {calendar.period}, which begin in {calendar.timezone} (--period, --timezone)")
    known_after = f"{delay} after their {calendar.unit if is_forecast else 'rows'}"
    notes.append(f"labels are taken to be known {known_after}: --label-delay says how long it takes")
    if repeated:
        notes.append(
            f"rows of {repeated[0]!r} come each {calendar.unit}, and their labels overlap: gates take them as one "
            "piece of evidence (clusters)"
        )
    if not calendar.is_multiple(delay):
        raise ScaffoldError("sample", [Fault("--label-delay", f"{delay} is no whole number of {calendar.period}")])
    if window.length + delay.length > _LONGEST_HISTORY and not is_forecast:
        problem = f"{delay} and a window of {window} are longer than the year that features may look back"
        raise ScaffoldError("sample", [Fault("--label-delay", problem, "predict something that is known earlier")])
    if ignored := [column.name for column in profile.columns if column.declared is None]:
        notes.append(f"left out, because no type can be declared for them: {_quoted(ignored)}")
    needed = calendar.count_in(holdout) + 2 * calendar.count_in(delay) + 1 + 2 * season * (season > 1)
    if span < needed:
        notes.append(f"the sample covers {span} {calendar.unit}s, and a first candidate needs {needed}: deliver more")
    is_long_enough = profile.row_count >= _MIN_IDENTIFIED_ROWS and length * span >= _MIN_CONSTANT_SPAN
    first_day, last_day = whole_days(calendar, periods[0], periods[-1])
    return ModelDraft(
        kind=kind,
        calendar=calendar,
        columns=tuple(columns),
        positive=positive,
        label_delay=delay,
        window=window,
        holdout=holdout,
        margin=_round_up(label_deviation * 0.02) if kind.is_of_numbers else 0.02,
        first_day=first_day,
        last_day=last_day,
        has_gaps=has_gaps,
        horizon=horizon,
        season=season,
        constant_inputs=frozenset(constant_inputs if is_long_enough else ()),
        overlapping_key=next((column.name for column in columns if column.raw_name in repeated), ""),
        quantiles=tuple(sorted(choices.quantiles)) or (QUANTILES if kind.name == "quantile" else ()),
        are_keys_dense=all(profile.column(name).distinct_count <= MAX_CATEGORIES for name in keys),
        notes=tuple(notes),
    )


def _forecast_notes(
    calendar: Calendar, choices: Choices, horizon: int, holdout: Duration, delay: Duration
) -> Iterable[str]:
    """Yield what is less than a forecast of these periods would be, and why."""
    season, longest = _natural_season(calendar), _longest_window(calendar, delay)
    if choices.season is None and season > longest:
        yield (
            f"no season: {season} {calendar.unit}s are more than the {longest} that features may look back, "
            f"with labels {delay} late"
        )
    if choices.horizon is None and horizon == _MAX_HORIZON:
        yield f"a day has {season} periods, and each value becomes a row for each of at most {_MAX_HORIZON} ahead"
    if horizon > calendar.count_in(holdout):
        yield (
            f"forecasts more than {calendar.count_in(holdout)} {calendar.unit}s ahead are never judged: the holdout is "
            "that long, and has those that were made in it. Let it be longer in model.py"
        )


def _forecast_names(profile: SampleProfile, choices: Choices, calendar: Calendar, window: Duration) -> tuple[str, ...]:
    """Return the columns that a forecast has besides those of the sample."""
    reserved = (ONLY_SERIES, horizon_name(calendar), history_rows(window))
    label = feature_names((column.name for column in profile.columns), reserved)[choices.label]
    label = "label" if label == "label_value" else label
    return (*reserved, history_last(label), f"{label}_{MODEL_KINDS['forecast'].statistic}_{window}")


def history_rows(window: Duration) -> str:
    """Return the feature that says how many rows a history has."""
    return f"rows_{window}"


def history_last(label: str) -> str:
    """Return the feature that is the last value of a history."""
    return f"{label}_last"


def _draft_columns(
    profile: SampleProfile,
    choices: Choices,
    keys: Collection[str],
    leaks: Collection[str],
    identifiers: Collection[str],
    reserved: Collection[str],
    *,
    has_late_labels: bool,
) -> list[DraftColumn]:
    names = feature_names((column.name for column in profile.columns), reserved)
    if names[choices.label] == "label_value" and "label" not in names.values():
        names[choices.label] = "label"
    columns = []
    for column in profile.columns:
        if column.declared is None or column.name in choices.ignored:
            continue
        role, comment = _role(column, choices, keys, leaks, identifiers)
        columns.append(
            DraftColumn(
                raw_name=column.name,
                name=names[column.name],
                type=column.declared,
                # Rows of a new period have no label yet, whatever the sample has.
                is_nullable=column.null_count > 0 or (role == "label" and has_late_labels),
                role=role,
                comment=comment,
                categories=tuple(sorted(column.values)) if role in ("category", "label") else (),
                is_never_negative=column.is_number and column.minimum is not None and column.minimum >= 0,
            )
        )
    return columns


def _role(
    column: ColumnProfile,
    choices: Choices,
    keys: Collection[str],
    leaks: Collection[str],
    identifiers: Collection[str],
) -> tuple[Role, str]:
    """Return what a column is for, and what to say about it beside its declaration."""
    if column.name == choices.time:
        return (
            "time",
            "says of which period a value is" if choices.kind == "forecast" else "when the prediction is made",
        )
    if column.name == choices.label:
        return "label", "what is predicted"
    if column.name == choices.query:
        return "query", "says which rows are ranked together"
    if column.name in keys:
        return "key", "names a series" if choices.kind == "forecast" else "has a history"
    if choices.kind == "forecast" and column.name not in identifiers:
        return "none", "no input: features.py may return it if it is known beforehand"
    if column.name in leaks:
        return "leak", "suspected leak: it tells the label, so it is no input"
    if column.name in identifiers:
        return "identifier", "nearly each row has its own: no input"
    if column.distinct_count == 1 and not column.null_count:
        return "none", "the same in all rows of the sample: no input"
    if is_code(column) and column.distinct_count > MAX_CATEGORIES:
        return "none", f"{column.distinct_count:,} codes: no input, unless it is a key"
    if column.is_number or column.declared == "bool":
        return "number", ""
    if column.declared == "string" and 0 < column.distinct_count <= MAX_CATEGORIES:
        return "category", ""
    if column.declared == "string":
        return "none", f"{column.distinct_count:,} values: no input, unless it is a key"
    return "none", "no input: features.py may compute one from it"


def _window(calendar: Calendar) -> Duration:
    """Return how far back a history goes."""
    return {"day": Duration(28, "d"), "week": Duration(12, "w")}.get(calendar.unit, Duration(7, "d"))


def whole_days(calendar: Calendar, first: str, last: str) -> tuple[date, date]:
    """Return the first and the last day of which all periods are in a sample, as those between them are.

    Of a sample that has no such day, it is the first and the last with any period.
    """
    end = calendar.shift(last, 1)
    first_day, last_day = calendar.date_of(first), calendar.dates(first, end)[1] - timedelta(1)
    first_whole = first_day + timedelta(calendar.first_of(first_day) < first)
    last_whole = last_day - timedelta(calendar.first_of(last_day + timedelta(1)) > end)
    return (first_whole, last_whole) if first_whole <= last_whole else (first_day, last_day)


def _seasonal_window(calendar: Calendar, season: int, delay: Duration) -> Duration:
    """Return how far back a history of whole seasons goes."""
    count = min(calendar.count_in(_window(calendar)), _longest_window(calendar, delay))
    period = Duration.parse(calendar.period)
    return Duration(max(count // season, 1) * season * period.count, period.unit)


def _longest_window(calendar: Calendar, delay: Duration) -> int:
    """Return the number of periods that a source may be read back, without those until labels are known."""
    return calendar.count_in(_LONGEST_TRAILING) - calendar.count_in(delay)


def _holdout(calendar: Calendar, span: int) -> Duration:
    """Return on how much a candidate is judged: a third of a short sample, but enough clusters for an interval."""
    if calendar.unit == "week":
        return Duration(10 if span >= 30 else 5, "w")
    days = span if calendar.unit == "day" else span // calendar.count_in(Duration(1, "d"))
    return Duration(14 if days >= 42 else 7, "d")


def _round_up(value: float) -> float:
    """Return a positive number with one digit that counts."""
    return float(f"{value:.1g}") if value > 0 else 0.01


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
