"""What a retrain came to: the gates as a table, the champion, and where to look further."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import httpx
from rich import box
from rich.table import Table
from rich.text import Text

from evergreen.cli.progress import Progress, format_duration
from evergreen.gates import GateResult, Verdict
from evergreen.settings import settings
from evergreen_local.stack import ServiceAddresses

_MIN_REASON_WIDTH = 120  # columns that the table needs to hold its reasons, too
_OUTCOME_STYLES = {"passed": "green", "failed": "red", "not_computed": "yellow"}


def show_gate_table(progress: Progress, title: str, verdict: Verdict) -> None:
    """One row per gate: both models' numbers, what they were held against, and why it passed or did not."""
    wide = progress.console.width >= _MIN_REASON_WIDTH
    table = Table(title=title, title_justify="left", title_style="bold", box=box.ROUNDED if wide else box.SIMPLE_HEAD)
    table.add_column("gate", overflow="fold", no_wrap=wide)
    for column in ("candidate", "champion", "interval", "threshold"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    if wide:
        table.add_column("reason", ratio=1)
    for record in verdict.results:
        # Text, not str: square brackets in a reason are no markup.
        table.add_row(*_gate_row(record), *([Text(record.reason)] if wide else []))
    progress.print(table)
    if not wide:
        for record in verdict.results:
            progress.print(f"{record.gate}: {record.reason}")


def show_promotion_outcome(progress: Progress, verdict: Verdict, promoted: bool, version: str | None) -> None:
    """What followed from the verdict."""
    if promoted:
        progress.print(f"promoted: {verdict.reason}", style="green")
    elif verdict.promote:
        progress.print("the gates passed, but the champion stays: the log of `promote` says why", style="yellow")
    else:
        progress.print(f"the champion stays: {verdict.reason}", style="yellow")
    progress.print(f"champion: version {version}" if version else "champion: none yet")


def show_summary(progress: Progress, addresses: ServiceAddresses, seconds: float) -> None:
    progress.print(f"done in {format_duration(seconds)}")
    show_addresses(progress, addresses)


def show_addresses(progress: Progress, addresses: ServiceAddresses) -> None:
    """Where to look, and how to end it."""
    progress.print(f"Airflow  {addresses.airflow_ui}{_login(progress, addresses.airflow)}")
    progress.print(f"MLflow   {addresses.mlflow_ui}")
    if not settings().airflow:
        progress.print("Both stay up until `make down`.")


def _login(progress: Progress, url: str) -> str:
    """Who may see it. A password is for the eyes at a terminal, and for no log."""
    parts = urlsplit(url)
    if not parts.username:
        return ""
    secret = unquote(parts.password or "") if progress.console.is_terminal else "(the one in EVERGREEN_AIRFLOW)"
    return f"  user {unquote(parts.username)}, password {secret}"


def fetch_champion_version(mlflow: str, model: str) -> str | None:
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


def _gate_row(record: GateResult) -> tuple[str | Text, ...]:
    interval = f"{record.interval[0]:+.4f} … {record.interval[1]:+.4f}" if record.interval else "–"
    return (
        record.gate,
        _number(record.candidate),
        _number(record.champion),
        interval,
        f"{record.threshold:g}",
        Text(record.outcome, style=_OUTCOME_STYLES[record.outcome]),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
