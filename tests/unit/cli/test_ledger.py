"""What a person at a terminal is told of a model's champions, and what they may change there."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from evergreen import ledger as records
from evergreen.cli import ledger
from evergreen.cli.progress import Progress
from evergreen.ledger import LedgerEvent
from support.ledger_events import MODEL, deferral, promotion, rollback, verdict_event

pytestmark = pytest.mark.unit


def recorded(*events: LedgerEvent) -> None:
    for event in events:
        records.append_decision(MODEL, "ada", lambda _, event=event: event)


def told(tell, *arguments) -> str:
    text = StringIO()
    tell(MODEL, *arguments, Progress(Console(file=text, width=200)))
    return " ".join(text.getvalue().split())


def test_an_empty_ledger_is_told_as_that(home: Path) -> None:
    assert told(ledger.show_history, None) == "flight_delay: the ledger has no entry yet"


def test_every_champion_is_told_with_its_reason(home: Path) -> None:
    recorded(verdict_event(10), promotion("1", 10, 1), verdict_event(17, "1"))
    recorded(promotion("2", 17, 3, "1"), rollback("1", "2"))
    text = told(ledger.show_history, None)
    assert "1 2013-01-11 the only gate passed" in text
    assert "2 2013-01-18 the only gate passed" in text
    assert "1 2013-01-11 rolled back from version 2: late flights" in text
    assert "champion: version 1; 2 verdicts in 5 entries" in text
    assert "barred: version 2" in text


def test_what_stands_ready_is_told(home: Path) -> None:
    recorded(verdict_event(10), promotion("1", 10, 1), verdict_event(17, "1"), deferral("2", 17, 3))
    assert "challenger: version 2, held back: frozen" in told(ledger.show_history, None)


def test_of_a_day_the_champion_of_its_end_is_told_with_its_evidence(home: Path) -> None:
    case = verdict_event(10).model_copy(update={"evidence": {"report": "s3://evidence/report.html"}})
    recorded(case, promotion("1", 10, 1))
    today = records.read_entries(MODEL)[-1].recorded_at.date()
    text = told(ledger.show_history, today)
    assert f"at the end of {today} (UTC): version 1" in text
    assert "report: s3://evidence/report.html" in text
    assert "asked by ada, entry 2" in text
    before = today.replace(year=today.year - 1)
    assert f"at the end of {before} (UTC): no champion" in told(ledger.show_history, before)
