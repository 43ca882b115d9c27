"""What a person is told that training has cost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from evergreen import storage
from evergreen.cli import costs
from evergreen.cli.progress import Progress
from evergreen.errors import SpecError
from evergreen.settings import settings
from evergreen.training.attempt import Attempt, ResourceAllocation

pytestmark = pytest.mark.unit

START = datetime(2026, 1, 1, tzinfo=UTC)


def record(model: str, job: str, name: str, team: str = "flights", hours: float = 1) -> None:
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
    ).write(storage.storage_path(settings().jobs) / model / job)


def told() -> str:
    text = StringIO()
    costs.show_training_costs(Progress(Console(file=text, width=200)))
    return " ".join(text.getvalue().split())


def test_nothing_is_told_as_that(home: Path) -> None:
    assert told().startswith("no attempt is on record in")


def test_attempts_are_summed_by_team_and_model(home: Path) -> None:
    record("late", "job1", "a")
    record("late", "job1", "b")
    record("late", "job2", "c", hours=0.5)
    record("net", "job3", "d", team="others")
    text = told()
    assert "flights late 3 2.50 10.00 20.00 –" in text
    assert "others net 1 1.00 4.00 8.00 –" in text
    assert "EVERGREEN_PRICES names the table" in text


def test_with_a_table_they_are_priced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = "cpu_hour = 0.25\nmemory_gib_hour = 0.125\ngpu_hour = { default = 2.0 }\n"
    home.mkdir(exist_ok=True)
    (home / "prices.toml").write_text(f'currency = "EUR"\n[on_demand]\n{rates}[spot]\n{rates}')
    monkeypatch.setenv("EVERGREEN_PRICES", str(home / "prices.toml"))
    settings.cache_clear()
    record("late", "job1", "a")
    text = told()
    assert "EUR" in text
    assert "flights late 1 1.00 4.00 8.00 4.00" in text


def test_a_table_that_is_not_there_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_PRICES", str(home / "none.toml"))
    settings.cache_clear()
    with pytest.raises(SpecError, match=r"none.toml"):
        told()
