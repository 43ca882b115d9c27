"""`evergreen backfill`: what is missing is built, also where Airflow's database is too busy to answer."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evergreen.cli import app, load_commands
from evergreen.client.airflow import AirflowError
from evergreen.errors import EvergreenError, WindowError
from evergreen.features import inputs, staleness
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen_local import backfilling
from evergreen_local.backfilling import RunFailedError, backfill_model
from evergreen_local.progress import Progress
from support import tills
from support.airflow_api import SimulatedAirflow

pytestmark = pytest.mark.unit

DAYS = tills.days(5)


@pytest.fixture
def model(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    tills.write_model(tmp_path, monkeypatch, use_models)
    tills.deliver(5)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return tills.reload_spec()


def backfill(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch, *replies: str, start: str = DAYS[0], end: str = DAYS[-1]
) -> tuple[SimulatedAirflow, str]:
    """Run the command against an Airflow with these replies; return the Airflow, and what was printed."""
    airflow = SimulatedAirflow(feature_spec(model).calendar, lambda days: tills.publish(model, days), replies)
    monkeypatch.setattr(backfilling, "connect_to_airflow", airflow.client)
    output = io.StringIO()
    with Progress(Console(file=output, width=160)) as progress:
        backfill_model("tills", start, end, progress)
    return airflow, output.getvalue()


def test_missing_days_are_built_once(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    tills.publish(model, DAYS[:2])
    airflow, text = backfill(model, monkeypatch)
    assert list(airflow.runs) == DAYS[2:], "from the first day that is missing"
    assert "✓ tills.features: backfilled 3 days, 2024-01-03 – 2024-01-05" in text
    assert not airflow.is_paused
    assert inputs.published_periods(model) == DAYS
    airflow, text = backfill(model, monkeypatch)
    assert airflow.creations == 0
    assert "all 5 days up to 2024-01-05 are published" in text


def test_stale_days_are_built_again(model: ModelSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the command that `evergreen status` names, also where their runs have succeeded before."""
    backfill(model, monkeypatch, end=DAYS[3])
    edit_features(tmp_path)
    tills.publish(model, DAYS[:1])
    stale = staleness.find_stale_features(model, inputs.published_manifests(model, DAYS))
    assert stale.periods == DAYS[1:4]
    assert stale.rebuild_fix == f"run `evergreen backfill tills --from {DAYS[1]} --to {DAYS[3]}`"
    airflow, text = backfill(model, monkeypatch, start=DAYS[1], end=DAYS[3])
    assert "✓ tills.features: backfilled 3 days, 2024-01-02 – 2024-01-04" in text
    assert not staleness.find_stale_features(model, inputs.published_manifests(model, DAYS)).periods
    edit_features(tmp_path)
    airflow, text = backfill(model, monkeypatch)
    assert "✓ tills.features: backfilled 5 days, 2024-01-01 – 2024-01-05" in text, "stale and missing ones"
    assert airflow.creations == 1


def test_days_that_stay_stale_are_no_success(model: ModelSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The workers of another machine may have other code."""
    tills.publish(model, DAYS)
    edit_features(tmp_path)
    airflow = SimulatedAirflow(feature_spec(model).calendar, lambda days: None)
    monkeypatch.setattr(backfilling, "connect_to_airflow", airflow.client)
    with Progress(Console(file=io.StringIO())) as progress, pytest.raises(RunFailedError) as failed:
        backfill_model("tills", DAYS[1], DAYS[2], progress)
    assert "tills.features succeeded, but 2 of 2 days of features of tills are stale" in str(failed.value)
    assert "the workers of Airflow may have another version" in str(failed.value)
    assert airflow.creations == 1


def edit_features(root: Path) -> None:
    file = root / "evergreen_models/tills/features.py"
    file.write_text(f"{file.read_text()}A = 1\n")


@pytest.mark.parametrize(
    ("replies", "creations"),
    [
        (["locked", "locked"], 3),
        (["half"], 3),  # an error, a conflict with what is there by half, and then all of it
        (["timeout"], 1),
        (["short"], 2),
        (["half", "locked", "short"], 5),
    ],
)
def test_a_busy_database_is_waited_for(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch, replies: list[str], creations: int
) -> None:
    airflow, text = backfill(model, monkeypatch, *replies)
    assert airflow.creations == creations
    assert inputs.published_periods(model) == DAYS
    assert "✓ tills.features: backfilled 5 days" in text
    assert not airflow.is_paused


def test_the_command_prints_what_it_did(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    airflow = SimulatedAirflow(feature_spec(model).calendar, lambda days: tills.publish(model, days))
    monkeypatch.setattr(backfilling, "connect_to_airflow", airflow.client)
    load_commands()
    result = CliRunner().invoke(app, ["backfill", "tills", "--from", DAYS[1], "--to", DAYS[2]])
    assert result.exit_code == 0, result.output
    assert "✓ tills.features: backfilled 2 days, 2024-01-02 – 2024-01-03" in result.stdout
    assert list(airflow.runs) == DAYS[1:3]


def test_a_failure_is_told_and_not_repeated(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailedError, match="tills.features of 2024-01-01 failed, run backfill__2024-01-01"):
        backfill(model, monkeypatch, "failing")


def test_runs_that_are_never_created_end_in_an_error(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AirflowError, match="Airflow has not created a run for 2024-01-05, in 10 tries"):
        backfill(model, monkeypatch, *["short"] * 20, start=DAYS[-1])


def test_periods_are_checked_before_anything_runs(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    for start, end, problem in (
        ("2023-12-31", DAYS[0], "is before 2024-01-01"),
        (DAYS[1], DAYS[0], "swap them"),
        ("yesterday", DAYS[0], "'yesterday' is not a period"),
        (DAYS[0], "2999-01-01", "was not over"),
    ):
        with pytest.raises(WindowError, match=problem):
            backfill(model, monkeypatch, start=start, end=end)


def test_without_an_airflow_the_way_out_is_named(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress(Console(file=io.StringIO())) as progress, pytest.raises(EvergreenError, match="EVERGREEN_AIRFLOW"):
        backfill_model("tills", DAYS[0], DAYS[1], progress)
