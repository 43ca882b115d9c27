"""Results of a retrain in the terminal: the gates as a table, the champion, and addresses of details."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

import httpx
from rich import box
from rich.table import Table
from rich.text import Text

from evergreen.client.addresses import ServiceAddresses
from evergreen.gates import Gate, Verdict
from evergreen.reports.gate_table import GATE_COLUMNS, gate_rows
from evergreen.settings import IS_CHECKOUT, SecretUrl, settings
from evergreen_local.progress import Progress, format_duration

_MIN_REASON_WIDTH = 120  # columns of a terminal that fits the reasons into the table
_OUTCOME_STYLES = {"passed": "green", "failed": "red", "inconclusive": "blue", "not_computed": "yellow"}


def show_gate_table(progress: Progress, title: str, verdict: Verdict, gates: Iterable[Gate] = ()) -> None:
    """Print the gate table; a narrow terminal shows outcomes and reasons below it."""
    wide = progress.console.width >= _MIN_REASON_WIDTH
    table = Table(title=title, title_justify="left", title_style="bold", box=box.ROUNDED if wide else box.SIMPLE_HEAD)
    gate, *numbers, outcome, reason = GATE_COLUMNS
    table.add_column(gate, overflow="fold", no_wrap=wide)
    for column in numbers:
        table.add_column(column.replace(", ", ",\n"), justify="right", no_wrap=True)
    if wide:
        table.add_column(outcome, no_wrap=True)
        table.add_column(reason, ratio=1)
    rows = gate_rows(verdict, gates)
    styles = [_OUTCOME_STYLES[result.outcome] for result in verdict.results]
    for row, style in zip(rows, styles, strict=True):
        *cells, outcome, reason = row
        table.add_row(*cells, *([Text(outcome, style), Text(reason)] if wide else []))
    progress.print(table)
    if not wide:
        for row, style in zip(rows, styles, strict=True):
            progress.print(f"{row.gate} {row.outcome}: {row.reason}", style=style)


def show_promotion_outcome(progress: Progress, verdict: Verdict, promoted: bool, version: str | None) -> None:
    """Print what followed from the verdict."""
    if promoted:
        progress.print(f"promoted: {verdict.reason}", style="green")
    elif verdict.is_inconclusive:
        progress.print(f"the candidate is the challenger, and gathers evidence: {verdict.reason}", style="yellow")
    elif verdict.promote:
        progress.print("the gates passed, but the champion stays: see the log of `promote`", style="yellow")
    else:
        progress.print(f"the champion stays: {verdict.reason}", style="yellow")
    progress.print(f"champion: version {version}" if version else "champion: none yet")


def show_outdated(progress: Progress, title: str, changes: Iterable[str]) -> None:
    """Print what a run that is over has used otherwise than it is here: its verdict is about that."""
    progress.print(
        f"the verdict is not about what is here: {title} has run with other inputs: {'; '.join(changes)}. Bring what "
        "is here to Airflow's workers, or wait until they have it, and run the same command again",
        style="yellow",
    )


def show_pause(progress: Progress, pause: str, version: str | None) -> None:
    """Print why nothing was trained."""
    progress.print(f"nothing was trained or compared: {pause}", style="yellow")
    progress.print(f"champion: version {version}" if version else "champion: none yet")


def show_summary(progress: Progress, addresses: ServiceAddresses, seconds: float) -> None:
    progress.print(f"done in {format_duration(seconds)}")
    show_addresses(progress, addresses)


def show_addresses(progress: Progress, addresses: ServiceAddresses) -> None:
    """Print the addresses of the UIs."""
    progress.print(f"Airflow  {addresses.airflow_ui}{_login(progress, addresses.airflow)}")
    progress.print(f"MLflow   {addresses.mlflow_ui}")
    if not settings().airflow:
        progress.print(f"Both run until `{'make' if IS_CHECKOUT else 'evergreen'} down`.")


def _login(progress: Progress, url: SecretUrl) -> str:
    """Return user and password; the password only at a terminal, not in a log."""
    parts = urlsplit(url.get_secret_value())
    if not parts.username:
        return ""
    password = unquote(parts.password or "") if progress.console.is_terminal else "(see EVERGREEN_AIRFLOW)"
    return f"  user {unquote(parts.username)}, password {password}"


def fetch_champion_version(mlflow: SecretUrl, model: str) -> str | None:
    """Return the version with the alias `champion` in the registry; None if there is none or no server."""
    login = httpx.URL(mlflow.get_secret_value())
    if not login.scheme.startswith("http"):
        return None
    response = httpx.get(
        f"{mlflow}/api/2.0/mlflow/registered-models/alias",
        params={"name": model, "alias": "champion"},
        timeout=30,
        trust_env=False,
        auth=(login.username, login.password) if login.username else None,
    )
    return str(response.json()["model_version"]["version"]) if response.status_code == 200 else None
