"""The tables of champions and of training costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evergreen import ledger, storage
from evergreen.cli.tables import show_history, show_training_costs
from evergreen.errors import SpecError
from evergreen.ledger import ChangeAccepted, LedgerEvent
from evergreen.settings import settings
from evergreen.training.attempt import Attempt, ResourceAllocation
from support.ledger_events import (
    MODEL,
    THREE_CHAMPIONS,
    content,
    deferral,
    look_event,
    promotion,
    registration,
    rollback,
    verdict_event,
)

pytestmark = pytest.mark.unit

START = datetime(2026, 1, 1, tzinfo=UTC)


def append_events(*events: LedgerEvent) -> None:
    for event in events:
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)


def record_attempt(model: str, job: str, name: str, team: str = "flights", hours: float = 1) -> None:
    end = START + timedelta(hours=hours)
    Attempt(
        id=name,
        dag_run="r",
        model=model,
        team=team,
        allocation=ResourceAllocation(cpu=4, memory_gib=8, gpu=1),
        started_at=START,
        last_heartbeat=end,
        ended_at=end,
    ).write(storage.storage_path(settings().jobs) / model / job / "attempts" / f"{name}.json")


def output_of(show: Callable[[Console], None]) -> str:
    text = StringIO()
    show(Console(file=text, width=200))
    return " ".join(text.getvalue().split())


def history(day: date | None = None) -> str:
    return output_of(lambda console: show_history(MODEL, day, console))


def test_show_history_of_an_empty_ledger(home: Path) -> None:
    assert history() == "flight_delay: the ledger has no entry yet: no candidate was judged"


def test_show_history_lists_every_champion_with_its_reason(home: Path) -> None:
    append_events(
        verdict_event(10), promotion("1", 10, 1), verdict_event(17, "1"), promotion("2", 17, 3, "1"), rollback("1", "2")
    )
    text = history()
    assert "1 2013-01-11 the only gate passed" in text
    assert "2 2013-01-18 the only gate passed" in text
    assert "1 2013-01-11 rolled back from version 2: late flights" in text
    assert "champion: version 1; 2 verdicts in 5 entries" in text
    assert "barred: version 2" in text


def test_show_history_names_the_challenger(home: Path) -> None:
    append_events(verdict_event(10), promotion("1", 10, 1), verdict_event(17, "1"), deferral("2", 17, 3))
    assert "challenger: version 2: it passed its gates, and its promotion is held back: frozen" in history()


def test_show_history_shows_how_evidence_grows(home: Path) -> None:
    first = look_event(verdict_event(20, "1"), "inconclusive")
    compared = first.model_copy(update={"champion_content": content(10)})
    later = look_event(compared, "inconclusive", 2, first_entry=3)
    append_events(verdict_event(10), promotion("1", 10, 1), first, registration("2", 3), later)
    text = history()
    # Day 13 is 14 January; 28 days.
    assert (
        "challenger: version 2: it gathers evidence until 2013-02-11 at most, and has that of days until 2013-01-28"
        in text
    )
    assert "auc_against_champion 2013-01-21 7 0.002 +0.0100 -0.0100" in text
    assert "auc_against_champion 2013-01-28 14 0.002 +0.0100 -0.0100" in text
    record = json_of(lambda console: show_history(MODEL, None, console, as_json=True))["challenger"]
    assert (record["version"], record["waits_for"]) == ("2", "evidence")
    assert [look["days"] for look in record["looks"]["auc_against_champion"]] == [7, 14]
    append_events(look_event(compared, "passed", 3, first_entry=3), promotion("2", 20, 6, "1"))
    assert "the only gate passed, at look 3" in history()


def test_show_history_names_labels_and_an_accepted_change(home: Path) -> None:
    first = verdict_event(10)
    partly = first.verdict.model_copy(update={"unlabelled_share": 0.024})
    accepted = ChangeAccepted(champion="3", reason="the source was closed")
    append_events(first.model_copy(update={"verdict": partly}), *THREE_CHAMPIONS[1:], accepted)
    text = "not compared where inputs of version 3 can no longer be made: ada accepted the change in entry 7"
    assert f"{text}: the source was closed" in history()
    assert "the only gate passed, 2.4 % of rows without a label" in history()
    record = json_of(lambda console: show_history(MODEL, None, console, as_json=True))
    assert [champion["unlabelled_share"] for champion in record["champions"]] == [0.024, None, None]
    assert record["accepted_change"] == "ada accepted the change in entry 7: the source was closed"


def test_show_history_of_a_day_includes_the_evidence(home: Path) -> None:
    verdict = verdict_event(10).model_copy(update={"evidence": {"report": "verdicts/late/page.html"}})
    append_events(verdict, promotion("1", 10, 1))
    today = ledger.read_state(MODEL).entries[-1].recorded_at.date()
    text = history(today)
    assert f"at the end of {today} (UTC): version 1" in text
    assert f"report: {home}/lake/verdicts/late/page.html" in text
    assert "requested by ada, entry 2" in text
    last_year = today.replace(year=today.year - 1)
    assert f"at the end of {last_year} (UTC): no champion" in history(last_year)


def test_show_training_costs_without_attempts(home: Path) -> None:
    assert output_of(show_training_costs).startswith("no training attempt is recorded in")


def test_show_training_costs_sums_by_team_and_model(home: Path) -> None:
    record_attempt("late", "job1", "a")
    record_attempt("late", "job1", "b")
    record_attempt("late", "job2", "c", hours=0.5)
    record_attempt("net", "job3", "d", team="others")
    text = output_of(show_training_costs)
    assert "flights late 3 2.50 10.00 20.00 –" in text
    assert "others net 1 1.00 4.00 8.00 –" in text
    assert "set EVERGREEN_PRICES to a price table" in text


def test_show_training_costs_uses_the_price_table(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = "cpu_hour = 0.25\nmemory_gib_hour = 0.125\ngpu_hour = { default = 2.0 }\n"
    home.mkdir(exist_ok=True)
    (home / "prices.toml").write_text(f'currency = "EUR"\n[on_demand]\n{rates}[spot]\n{rates}')
    monkeypatch.setenv("EVERGREEN_PRICES", str(home / "prices.toml"))
    settings.cache_clear()
    record_attempt("late", "job1", "a")
    text = output_of(show_training_costs)
    assert "EUR" in text
    assert "flights late 1 1.00 4.00 8.00 4.00" in text


def test_show_training_costs_names_a_missing_price_table(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_PRICES", str(home / "none.toml"))
    settings.cache_clear()
    with pytest.raises(SpecError, match=r"none.toml"):
        output_of(show_training_costs)


def json_of(show: Callable[[Console], None]) -> Any:
    text = StringIO()
    show(Console(file=text, width=40))  # narrower than its lines
    return json.loads(text.getvalue())


def test_history_as_json_has_champions_and_evidence(home: Path) -> None:
    empty = json_of(lambda console: show_history(MODEL, None, console, as_json=True))
    assert (empty["champion"], empty["champions"], empty["challenger"]) == (None, [], None)
    verdict = verdict_event(10).model_copy(update={"evidence": {"report": "verdicts/late/page.html"}})
    append_events(verdict, promotion("1", 10, 1), *THREE_CHAMPIONS[2:4], rollback("1", "2"))
    record = json_of(lambda console: show_history(MODEL, None, console, as_json=True))
    assert record["champion"] == "1"
    assert [champion["version"] for champion in record["champions"]] == ["1", "2", "1"]
    assert record["barred"] == ["2"]
    assert record["champions"][0]["evidence"] == {"report": f"{home}/lake/verdicts/late/page.html"}
    past = json_of(lambda console: show_history(MODEL, date(2020, 1, 1), console, as_json=True))
    assert (past["champion"], past["entries"]) == (None, 0)


def test_costs_as_json_are_numbers(home: Path) -> None:
    assert json_of(lambda console: show_training_costs(console, as_json=True)) == []
    record_attempt("flight_delay", "a", "one", hours=2)
    [row] = json_of(lambda console: show_training_costs(console, as_json=True))
    assert (row["team"], row["model"], row["attempts"], row["gpu_hours"], row["price"]) == (
        "flights",
        "flight_delay",
        1,
        2.0,
        None,
    )
