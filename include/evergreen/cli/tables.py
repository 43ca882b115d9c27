"""Tables in the terminal: the champions of a model, and the cost of training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime, time
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evergreen import ledger, maintenance, storage
from evergreen.cli.options import print_json
from evergreen.errors import SpecError
from evergreen.lake import datasets
from evergreen.ledger import (
    ChampionLost,
    ChampionRolledBack,
    LedgerEvent,
    LedgerState,
    VerdictRecorded,
    VersionPromoted,
)
from evergreen.promotion.challengers import challenger_wait
from evergreen.settings import settings
from evergreen.spec.loader import load_spec
from evergreen.spec.model import ModelSpec
from evergreen.training.attempt import Attempt, read_attempts
from evergreen.training.cost import PriceTable, TrainingCost, total_cost


def show_history(name: str, day: date | None, console: Console, as_json: bool = False) -> None:
    """Print the champions of a model, or only the champion at the end of `day`."""
    model, state = load_spec(name), ledger.read_state(name)
    if as_json:
        at_day = ledger.state_at(state.entries, datetime.combine(day, time.max, UTC)) if day else state
        print_json(console, _history_record(name, at_day, only_champion=bool(day)))
        return
    if not state.entries:
        console.print(f"{name}: the ledger has no entry yet: no candidate was judged")
        return
    if day:
        _show_champion_on_day(name, state, day, console)
        return
    table = _table(f"{name}: champions")
    for column in ("since", "champion", "data until", "reason", "requested by", "entry"):
        table.add_column(column, overflow="fold", no_wrap=column in ("since", "champion", "data until"))
    for tenure in state.tenures:
        entry = state.entries[tenure.entry_number - 1]
        reason, actor = Text(_change_reason(entry.event, state)), Text(entry.actor)
        since = format_time(entry.recorded_at)
        table.add_row(since, tenure.version, str(tenure.as_of), reason, actor, str(entry.number))
    console.print(table, soft_wrap=False)
    verdicts = state.entries.count_kind(VerdictRecorded)
    counts = f"{verdicts} verdict{'s' * (verdicts != 1)} in {len(state.entries)} entries"
    console.print(f"champion: {_format_version(state.champion)}; {counts}")
    if event := state.challenger_event:
        console.print(f"challenger: version {state.challenger}: {challenger_wait(state, model)}")
        _show_looks(event, console)
    if state.barred_versions:
        console.print(f"barred: version {', '.join(sorted(state.barred_versions))}; `evergreen release` ends that")
    if state.accepted_change:
        console.print(f"not compared where inputs of {_format_version(state.champion)} can no longer be made: ", end="")
        console.print(Text(state.accepted_change))
    if state.is_frozen:
        console.print("frozen: nothing is promoted until `evergreen unfreeze`")


def show_training_costs(console: Console, as_json: bool = False) -> None:
    """Print one row for each team and model, summed over all recorded attempts.

    Raises:
        SpecError: The price table is missing or invalid.
    """
    file = settings().prices
    prices = PriceTable.read(file) if file else None
    attempts: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    root = storage.storage_path(settings().jobs)
    for model in storage.list_names(root):
        for job in storage.list_names(root / model):
            for attempt in read_attempts(root / model / job):
                attempts[attempt.team, attempt.model].append(attempt)
    costs = {key: total_cost(group, prices) for key, group in sorted(attempts.items())}
    if as_json:
        currency = prices.currency if prices else None
        rows = [_cost_record(team, model, cost, currency) for (team, model), cost in costs.items()]
        print_json(console, rows)
        return
    if not attempts:
        console.print(f"no training attempt is recorded in {settings().jobs}")
        return
    table = _table("cost of training")
    for column in ("team", "model"):
        table.add_column(column)
    for column in ("attempts", "GPU hours", "CPU hours", "GiB hours", prices.currency if prices else "price"):
        table.add_column(column, justify="right")
    for (team, model), cost in costs.items():
        hours = (cost.gpu_seconds / 3600, cost.cpu_seconds / 3600, cost.memory_gib_seconds / 3600)
        price = "–" if cost.price is None else f"{cost.price:,.2f}"
        table.add_row(team or "–", model, str(cost.attempts), *(f"{value:,.2f}" for value in hours), price)
    console.print(table, soft_wrap=False)
    if prices is None:
        console.print("no prices are set: set EVERGREEN_PRICES to a price table, see docs/guides/kubernetes.md")


def show_cleanup(console: Console, *, is_dry_run: bool, as_json: bool = False) -> None:
    """Remove what the settings let go, unless it is a dry run, and print one row for each place and kind.

    Raises:
        EvergreenError: something is wrong in places, which are not cleaned up.
    """
    report = maintenance.clean_up(datetime.now(UTC), is_dry_run=is_dry_run)
    if as_json:
        print_json(console, {"is_dry_run": is_dry_run, "items": [asdict(item) for item in report.items]})
    elif settings().retention.leftovers_days is None:
        console.print("nothing is ever removed: EVERGREEN_RETENTION__LEFTOVERS_DAYS is not set")
    elif not report.items:
        console.print("nothing is old enough to go")
    else:
        table = _table("would go" if is_dry_run else "removed")
        for column in ("place", "kind"):
            table.add_column(column)
        for column in ("count", "MB", "oldest"):
            table.add_column(column, justify="right")
        for item in report.items:
            size = f"{item.size / 1e6:,.1f}"
            table.add_row(item.place, item.kind, f"{item.count:,}", size, format_time(item.oldest))
        console.print(table, soft_wrap=False)
    report.raise_problems()


def _history_record(name: str, state: LedgerState, only_champion: bool) -> dict[str, Any]:
    tenures = state.tenures[-1:] if only_champion else state.tenures
    entries = [state.entries[tenure.entry_number - 1] for tenure in tenures]
    champions = [
        {
            "version": tenure.version,
            "since": entry.recorded_at.isoformat(),
            "data_until": tenure.as_of,
            "reason": _change_reason(entry.event, state),
            "requested_by": entry.actor,
            "entry": entry.number,
            "unlabelled_share": _unlabelled_share(entry.event, state),
            "evidence": dict(_evidence(entry.event, state)),
        }
        for tenure, entry in zip(tenures, entries, strict=True)
    ]
    return {
        "model": name,
        "champion": state.champion,
        "champions": champions,
        "challenger": _challenger_record(load_spec(name), state),
        "barred": sorted(state.barred_versions),
        "frozen": state.is_frozen,
        "accepted_change": state.accepted_change,
        "entries": len(state.entries),
    }


def _cost_record(team: str, model: str, cost: TrainingCost, currency: str | None) -> dict[str, Any]:
    return {
        "team": team or None,
        "model": model,
        "attempts": cost.attempts,
        "gpu_hours": cost.gpu_seconds / 3600,
        "cpu_hours": cost.cpu_seconds / 3600,
        "gib_hours": cost.memory_gib_seconds / 3600,
        "price": cost.price,
        "currency": currency,
    }


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _show_champion_on_day(name: str, current_state: LedgerState, day: date, console: Console) -> None:
    state = ledger.state_at(current_state.entries, datetime.combine(day, time.max, UTC))
    console.print(f"{name} at the end of {day} (UTC): {_format_version(state.champion)}")
    for tenure in state.tenures[-1:]:
        entry = state.entries[tenure.entry_number - 1]
        since = f"since {format_time(entry.recorded_at)}, data until {tenure.as_of}"
        console.print(f"{since}: {_change_reason(entry.event, state)}")
        console.print(f"requested by {entry.actor}, entry {entry.number}")
        for kind, location in _evidence(entry.event, state).items():
            console.print(f"{kind}: {location}")


def _evidence(event: LedgerEvent, state: LedgerState) -> Mapping[str, str]:
    """Return the files that the promotion stands on; empty for a rollback or a loss."""
    verdict_event = state.find_verdict_event(event.verdict_entry) if isinstance(event, VersionPromoted) else None
    files = verdict_event.evidence.items() if verdict_event else ()
    return {kind: str(datasets.lake_path(path)) for kind, path in files}


def _unlabelled_share(event: LedgerEvent, state: LedgerState) -> float | None:
    verdict_event = state.find_verdict_event(event.verdict_entry) if isinstance(event, VersionPromoted) else None
    return verdict_event.verdict.unlabelled_share if verdict_event else None


def _change_reason(event: LedgerEvent, state: LedgerState) -> str:
    """Return why the champion changed with this event."""
    if isinstance(event, ChampionRolledBack):
        approval = f", approved by {event.approved_by}" if event.approved_by else ""
        how = f"automatically rolled back{approval}" if event.request_entry else "rolled back"
        return f"{how} from version {event.barred_version}: {event.reason}"
    if isinstance(event, ChampionLost):
        return f"version {event.lost_version} was lost: {event.reason}"
    assert isinstance(event, VersionPromoted)  # nothing else begins a tenure
    verdict_event = state.find_verdict_event(event.verdict_entry)
    assert verdict_event  # or the ledger would have refused the entry
    looks = max((len(result.looks) for result in verdict_event.verdict.results), default=0)
    look = f", at look {looks}" if verdict_event.later_look else ""
    approval = f", approved by {event.approved_by}" if event.approved_by else ""
    share = verdict_event.verdict.unlabelled_share
    unlabelled = f", {100 * share:.2g} % of rows without a label" if share else ""
    cause = f", trained because of {verdict_event.cause}" if verdict_event.cause else ""
    return verdict_event.verdict.reason.partition(":")[0] + look + unlabelled + approval + cause


def list_challengers(states: Mapping[str, LedgerState]) -> list[str]:
    """Return a sentence for each model that has a challenger: its version, and what it waits for.

    Of a model whose spec is invalid, what is wrong with it instead.
    """
    lines = []
    for name, state in states.items():
        if state.challenger:
            try:
                wait = challenger_wait(state, load_spec(name))
            except SpecError as error:
                wait = f"its spec is invalid: {'; '.join(map(str, error.faults))}"
            lines.append(f"challenger of {name}: version {state.challenger}: {wait}")
    return lines


def _challenger_record(model: ModelSpec, state: LedgerState) -> dict[str, Any] | None:
    event = state.challenger_event
    if event is None:
        return None
    return {
        "version": state.challenger,
        "waits_for": "evidence" if state.open_comparison else "promotion",
        "reason": challenger_wait(state, model),
        "looks": {r.gate: [look.model_dump(mode="json") for look in r.looks] for r in event.verdict.results if r.looks},
    }


def _show_looks(event: VerdictRecorded, console: Console) -> None:
    """Print how the evidence of a challenger has grown."""
    table = _table("its evidence")
    table.add_column("gate")
    for column in ("data until", "days", "level", "gain", "at least"):
        table.add_column(column, justify="right")
    for result in event.verdict.results:
        for look in result.looks:
            numbers = (f"{look.level:.2g}", f"{look.gain:+.4f}", f"{look.low:+.4f}")
            table.add_row(result.gate, str(look.end), str(look.days), *numbers)
    if table.row_count:
        console.print(table, soft_wrap=False)


def _format_version(version: str | None) -> str:
    return f"version {version}" if version else "no champion"


def format_time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
