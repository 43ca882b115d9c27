"""Where the newest reports on a model are."""

from __future__ import annotations

import json
import webbrowser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evergreen import ledger
from evergreen.cli import app
from evergreen.cli.reports import show_reports
from evergreen.errors import EvergreenError, SpecError
from evergreen.lake import datasets
from evergreen.monitoring.record import REPORT_FILE, monitoring_dataset, record_partition
from support.ledger_events import MODEL, THREE_CHAMPIONS, verdict_event

pytestmark = pytest.mark.unit


def show(as_of: str | None = None, *, opens: bool = False, as_json: bool = False) -> str:
    output = StringIO()
    show_reports(MODEL, as_of, Console(file=output, width=60), opens=opens, as_json=as_json)
    return output.getvalue()


def write_gate_report(as_of: int) -> Path:
    """Record a verdict that has a report, and return its file."""
    path = f"verdicts/{MODEL}/a-{as_of}.html"
    event = verdict_event(as_of).model_copy(update={"evidence": {"report": path}})
    ledger.append_decision(MODEL, "ada", lambda _: event)
    file = Path(datasets.lake_path(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("<p>gates")
    return file


def test_the_newest_gate_report_is_shown_and_opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier, newest = write_gate_report(10), write_gate_report(17)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: not opened.append(address))
    assert show() == f"gate report: {newest}\n"
    assert opened == []
    assert show(opens=True) == f"gate report: {newest}\n"
    assert opened == [newest.absolute().as_uri()]
    as_of = str(verdict_event(10).as_of)
    assert json.loads(show(as_of, as_json=True)) == {"gate report": str(earlier)}


def test_a_browser_that_does_not_start_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = write_gate_report(10)
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    monkeypatch.setenv("COLUMNS", "1000")
    result = CliRunner().invoke(app, ["report", MODEL, "--open"])
    assert result.exit_code == 1
    assert f"no browser can be started here: open {report}" in result.output
    assert CliRunner().invoke(app, ["report", MODEL]).exit_code == 0


def test_the_monitoring_report_is_that_of_the_champion(home: Path) -> None:
    for event in THREE_CHAMPIONS:
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)
    content = ledger.read_state(MODEL).champion_content
    assert content
    dataset, partition = monitoring_dataset(MODEL), record_partition(content)
    staged = dataset.stage(partition, "f")
    (staged / "report.html").write_text("<p>drift")
    dataset.publish(partition, "f", {REPORT_FILE: staged / "report.html"}, {})
    [line] = show().splitlines()
    assert line.startswith("monitoring report: ")
    assert Path(line.partition(": ")[2]).read_text() == "<p>drift"
    with pytest.raises(EvergreenError, match="has no report as of 2013-01-01"):
        show("2013-01-01")


def test_what_is_gone_or_never_was_is_said(home: Path) -> None:
    with pytest.raises(EvergreenError, match="has no report: retrain it"):
        show()
    write_gate_report(10).unlink()
    with pytest.raises(EvergreenError, match="has no report: retrain it"):
        show()
    with pytest.raises(SpecError):
        show_reports("fligth_delay", None, Console(file=StringIO()))


def test_a_report_in_an_object_store_is_not_opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from upath import UPath

    report = UPath("memory://lake/report.html")
    report.write_bytes(b"<p>gates")
    monkeypatch.setattr("evergreen.cli.reports.find_reports", lambda *_: {"gate report": report})
    with pytest.raises(EvergreenError, match="open the links of the tasks judge and watch"):
        show(opens=True)
