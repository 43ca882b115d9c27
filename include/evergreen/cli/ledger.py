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
from evergreen.ledger import Act, Held, Judged, Promoted, RolledBack, State
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen_local import stack
from evergreen_local.stack import StackError


def history(name: str, at: date | None, progress: Progress) -> None:
    """Which version was champion when, why, and on what evidence; of one day, if `at` names it."""
    loader.load(name)
    state = ledger.state(name)
    if not state.entries:
        progress.say(f"{name}: the ledger has no entry yet")
        return
    if at:
        _on_day(name, state, at, progress)
        return
    table = Table(title=f"{name}: champions", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("since", "champion", "data until", "why", "asked by", "entry"):
        table.add_column(column, overflow="fold", no_wrap=column in ("since", "champion", "data until"))
    for reign in state.reigns:
        entry = state.entries[reign.number - 1]
        why, by = Text(_why(entry.act, state)), Text(entry.by)
        table.add_row(_moment(entry.at), reign.version, str(reign.as_of), why, by, str(entry.number))
    progress.say(table)
    judged = sum(isinstance(entry.act, Judged) for entry in state.entries)
    progress.say(f"champion: {_version(state.champion)}; {judged} verdicts in {len(state.entries)} entries")
    if state.challenger:
        progress.say(f"challenger: version {state.challenger}, held back: {_held(state)}")
    if state.barred:
        progress.say(f"barred: version {', '.join(sorted(state.barred))}; `evergreen release` ends that")
    if state.frozen:
        progress.say("frozen: nothing is promoted until `evergreen unfreeze`")


def _on_day(name: str, now: State, day: date, progress: Progress) -> None:
    """The champion at the end of `day` (UTC), and the entry that made it so."""
    state = ledger.at(now.entries, datetime.combine(day, time.max, UTC))
    progress.say(f"{name} at the end of {day} (UTC): {_version(state.champion)}")
    for reign in state.reigns[-1:]:
        entry = state.entries[reign.number - 1]
        progress.say(f"since {_moment(entry.at)}, data until {reign.as_of}: {_why(entry.act, state)}")
        progress.say(f"asked by {entry.by}, entry {entry.number}")
        judged = state.judged(entry.act.judged) if isinstance(entry.act, Promoted) else None
        for kind, where in (judged.evidence if judged else {}).items():
            progress.say(f"{kind}: {where}")


def _why(act: Act, state: State) -> str:
    """Why the champion changed with this act."""
    if isinstance(act, RolledBack):
        return f"rolled back from version {act.barred}: {act.reason}"
    assert isinstance(act, Promoted)  # nothing else begins a reign
    judged = state.judged(act.judged)
    assert judged  # or the ledger would have refused the entry
    who = f", approved by {act.approved_by}" if act.approved_by else ""
    return judged.verdict.reason.partition(":")[0] + who


def _held(state: State) -> str:
    """Why the challenger is not champion."""
    acts = [entry.act for entry in state.entries]
    return next(a.reason for a in reversed(acts) if isinstance(a, Held) and a.version == state.challenger)


def _reach_registry() -> None:
    """Files that tasks have registered lie behind the MLflow server of `evergreen up`: that one must be asked."""
    if "mlflow" in settings().model_fields_set:
        return
    url = stack.mlflow()
    if url is None:
        raise StackError("MLflow is not up, and its aliases have to follow: `evergreen up` starts it")
    os.environ["EVERGREEN_MLFLOW"] = url
    settings.cache_clear()


def rollback(name: str, to: str | None, reason: str, progress: Progress) -> None:
    _reach_registry()
    from evergreen.promotion import service  # which loads MLflow

    act = service.rollback(loader.load(name), to, reason, by=_me())
    progress.say(f"{name}: version {act.to} is champion again", style="green")
    progress.say(f"version {act.barred} is barred until `evergreen release {name} {act.barred} --reason …`")


def release(name: str, version: str, reason: str, progress: Progress) -> None:
    _reach_registry()
    from evergreen.promotion import service

    service.release(loader.load(name), version, reason, by=_me())
    progress.say(f"{name}: version {version} may be promoted again")


def freeze(name: str, reason: str, progress: Progress) -> None:
    _reach_registry()
    from evergreen.promotion import service

    service.freeze(loader.load(name), reason, by=_me())
    progress.say(f"{name} is frozen: candidates are trained and judged, none is promoted")


def unfreeze(name: str, reason: str, progress: Progress) -> None:
    _reach_registry()
    from evergreen.promotion import service

    service.unfreeze(loader.load(name), reason, by=_me())
    progress.say(f"{name} is promoted again when its gates pass")


def repair(names: Sequence[str], progress: Progress) -> None:
    """Bring MLflow's aliases to what the ledger says, and tell what was wrong with them."""
    _reach_registry()
    from evergreen.registry import versions

    for name in names:
        loader.load(name)
        for sentence in versions.repair(name).sentences:
            progress.say(f"{name}: {sentence}")


def sign(name: str, version: str, progress: Progress) -> None:
    """Sign a registered version with the configured key."""
    _reach_registry()
    from evergreen.registry import versions

    loader.load(name)
    versions.sign(name, version)
    progress.say(f"{name}: version {version} is signed")


def _me() -> str:
    return f"{getpass.getuser()}, at a terminal"


def _version(version: str | None) -> str:
    return f"version {version}" if version else "no champion"


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
