"""What the ledger tells a person at a terminal, and what a person may write into it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from datetime import UTC, date, datetime, time

from rich import box
from rich.table import Table
from rich.text import Text

from evergreen import ledger
from evergreen.cli.progress import Progress
from evergreen.ledger import (
    ChampionRolledBack,
    LedgerEvent,
    LedgerState,
    PromotionDeferred,
    VerdictRecorded,
    VersionPromoted,
)
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen_local import stack
from evergreen_local.stack import StackError


def show_history(name: str, day: date | None, progress: Progress) -> None:
    """Which version was champion when, why, and on what evidence; of one day, if `at` names it."""
    loader.load_spec(name)
    state = ledger.read_state(name)
    if not state.entries:
        progress.print(f"{name}: the ledger has no entry yet")
        return
    if day:
        _show_champion_on_day(name, state, day, progress)
        return
    table = Table(title=f"{name}: champions", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("since", "champion", "data until", "why", "asked by", "entry"):
        table.add_column(column, overflow="fold", no_wrap=column in ("since", "champion", "data until"))
    for reign in state.tenures:
        entry = state.entries[reign.entry_number - 1]
        why, by = Text(_change_reason(entry.event, state)), Text(entry.actor)
        table.add_row(_format_time(entry.recorded_at), reign.version, str(reign.as_of), why, by, str(entry.number))
    progress.print(table)
    judged = sum(isinstance(entry.event, VerdictRecorded) for entry in state.entries)
    progress.print(f"champion: {_format_version(state.champion)}; {judged} verdicts in {len(state.entries)} entries")
    if state.challenger:
        progress.print(f"challenger: version {state.challenger}, held back: {_deferral_reason(state)}")
    if state.barred_versions:
        progress.print(f"barred: version {', '.join(sorted(state.barred_versions))}; `evergreen release` ends that")
    if state.is_frozen:
        progress.print("frozen: nothing is promoted until `evergreen unfreeze`")


def _show_champion_on_day(name: str, current_state: LedgerState, day: date, progress: Progress) -> None:
    """The champion at the end of `day` (UTC), and the entry that made it so."""
    state = ledger.state_at(current_state.entries, datetime.combine(day, time.max, UTC))
    progress.print(f"{name} at the end of {day} (UTC): {_format_version(state.champion)}")
    for reign in state.tenures[-1:]:
        entry = state.entries[reign.entry_number - 1]
        progress.print(
            f"since {_format_time(entry.recorded_at)}, data until {reign.as_of}: {_change_reason(entry.event, state)}"
        )
        progress.print(f"asked by {entry.actor}, entry {entry.number}")
        judged = (
            state.find_verdict_event(entry.event.verdict_entry) if isinstance(entry.event, VersionPromoted) else None
        )
        for kind, where in (judged.evidence if judged else {}).items():
            progress.print(f"{kind}: {where}")


def _change_reason(act: LedgerEvent, state: LedgerState) -> str:
    """Why the champion changed with this act."""
    if isinstance(act, ChampionRolledBack):
        return f"rolled back from version {act.barred_version}: {act.reason}"
    assert isinstance(act, VersionPromoted)  # nothing else begins a reign
    judged = state.find_verdict_event(act.verdict_entry)
    assert judged  # or the ledger would have refused the entry
    who = f", approved by {act.approved_by}" if act.approved_by else ""
    return judged.verdict.reason.partition(":")[0] + who


def _deferral_reason(state: LedgerState) -> str:
    """Why the challenger is not champion."""
    acts = [entry.event for entry in state.entries]
    return next(a.reason for a in reversed(acts) if isinstance(a, PromotionDeferred) and a.version == state.challenger)


def _use_local_mlflow() -> None:
    """Files that tasks have registered lie behind the MLflow server of `evergreen up`: that one must be asked."""
    if "mlflow" in settings().model_fields_set:
        return
    url = stack.local_mlflow_url()
    if url is None:
        raise StackError("MLflow is not up, and its aliases have to follow: `evergreen up` starts it")
    os.environ["EVERGREEN_MLFLOW"] = url
    settings.cache_clear()


def run_rollback(name: str, to_version: str | None, reason: str, progress: Progress) -> None:
    _use_local_mlflow()
    from evergreen.promotion import service  # which loads MLflow

    act = service.roll_back_champion(loader.load_spec(name), to_version, reason, actor=_terminal_user())
    progress.print(f"{name}: version {act.restored_version} is champion again", style="green")
    progress.print(
        f"version {act.barred_version} is barred until `evergreen release {name} {act.barred_version} --reason …`"
    )


def run_release(name: str, version: str, reason: str, progress: Progress) -> None:
    _use_local_mlflow()
    from evergreen.promotion import service

    service.release_version(loader.load_spec(name), version, reason, actor=_terminal_user())
    progress.print(f"{name}: version {version} may be promoted again")


def run_freeze(name: str, reason: str, progress: Progress) -> None:
    _use_local_mlflow()
    from evergreen.promotion import service

    service.freeze_promotions(loader.load_spec(name), reason, actor=_terminal_user())
    progress.print(f"{name} is frozen: candidates are trained and judged, none is promoted")


def run_unfreeze(name: str, reason: str, progress: Progress) -> None:
    _use_local_mlflow()
    from evergreen.promotion import service

    service.unfreeze_promotions(loader.load_spec(name), reason, actor=_terminal_user())
    progress.print(f"{name} is promoted again when its gates pass")


def run_alias_repair(names: Sequence[str], progress: Progress) -> None:
    """Bring MLflow's aliases to what the ledger says, and tell what was wrong with them."""
    _use_local_mlflow()
    from evergreen.registry import aliases

    for name in names:
        loader.load_spec(name)
        for sentence in aliases.repair_aliases(name).messages:
            progress.print(f"{name}: {sentence}")


def run_signing(name: str, version: str, progress: Progress) -> None:
    """Sign a registered version with the configured key."""
    _use_local_mlflow()
    from evergreen.registry import versions

    loader.load_spec(name)
    versions.sign_version(name, version)
    progress.print(f"{name}: version {version} is signed")


def _terminal_user() -> str:
    return f"{getpass.getuser()}, at a terminal"


def _format_version(version: str | None) -> str:
    return f"version {version}" if version else "no champion"


def _format_time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
