"""What a retrain came to: the gates as a table, the champion, and where to look further."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import httpx
from rich import box
from rich.table import Table
from rich.text import Text

from evergreen.cli.progress import Progress, duration
from evergreen.gates import Record, Verdict
from evergreen.settings import settings
from evergreen_local.stack import Addresses

_WIDE = 120  # columns that the table needs to hold its reasons, too
_OUTCOME = {"passed": "green", "failed": "red", "not_computed": "yellow"}


def gates(progress: Progress, title: str, verdict: Verdict) -> None:
    """One row per gate: both models' numbers, what they were held against, and why it passed or did not."""
    wide = progress.console.width >= _WIDE
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.ROUNDED if wide else box.SIMPLE_HEAD
    )
    table.add_column("gate", overflow="fold", no_wrap=wide)
    for column in ("candidate", "champion", "interval", "threshold"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    if wide:
        table.add_column("reason", ratio=1)
    for record in verdict.records:
        # Text, not str: square brackets in a reason are no markup.
        table.add_row(*_numbers(record), *([Text(record.reason)] if wide else []))
    progress.say(table)
    if not wide:
        for record in verdict.records:
            progress.say(f"{record.gate}: {record.reason}")


def outcome(progress: Progress, verdict: Verdict, promoted: bool, version: str | None) -> None:
    """What followed from the verdict."""
    if promoted:
        progress.say(f"promoted: {verdict.reason}", style="green")
    elif verdict.promote:
        progress.say(
            "the gates passed, but the champion stays: the log of `promote` says why", style="yellow"
        )
    else:
        progress.say(f"the champion stays: {verdict.reason}", style="yellow")
    progress.say(f"champion: version {version}" if version else "champion: none yet")


def closing(progress: Progress, addresses: Addresses, seconds: float) -> None:
    progress.say(f"done in {duration(seconds)}")
    where(progress, addresses)


def where(progress: Progress, addresses: Addresses) -> None:
    """Where to look, and how to end it."""
    progress.say(f"Airflow  {addresses.airflow_ui}{_login(progress, addresses.airflow)}")
    progress.say(f"MLflow   {addresses.mlflow_ui}")
    if not settings().airflow:
        progress.say("Both stay up until `make down`.")


def _login(progress: Progress, url: str) -> str:
    """Who may see it. A password is for the eyes at a terminal, and for no log."""
    parts = urlsplit(url)
    if not parts.username:
        return ""
    secret = (
        unquote(parts.password or "") if progress.console.is_terminal else "(the one in EVERGREEN_AIRFLOW)"
    )
    return f"  user {unquote(parts.username)}, password {secret}"


def champion(mlflow: str, model: str) -> str | None:
    """The version that holds the alias `champion` in the registry; None if none does or nobody can say."""
    if not mlflow.startswith("http"):
        return None
    answer = httpx.get(
        f"{mlflow}/api/2.0/mlflow/registered-models/alias",
        params={"name": model, "alias": "champion"},
        timeout=30,
        trust_env=False,
    )
    return str(answer.json()["model_version"]["version"]) if answer.status_code == 200 else None


def _numbers(record: Record) -> tuple[str | Text, ...]:
    interval = f"{record.interval[0]:+.4f} … {record.interval[1]:+.4f}" if record.interval else "–"
    return (
        record.gate,
        _number(record.candidate),
        _number(record.champion),
        interval,
        f"{record.threshold:g}",
        Text(record.outcome, style=_OUTCOME[record.outcome]),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
