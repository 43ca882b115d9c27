"""The check of features: stale days of the next retrain's window, with what differs and how to rebuild them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.cli.doctor.features import check_features, check_serving, check_tables
from evergreen.errors import TableError
from evergreen.feature_store import training_sets
from evergreen.periods import Calendar
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from support import tills
from support.checks import failure

pytestmark = pytest.mark.unit

UTC_DAYS = Calendar("1d", "UTC")
DAYS = tills.days(10)  # a retrain reads the last seven


@pytest.fixture
def folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model with ten published days."""
    folder = tills.write_model(tmp_path, monkeypatch, use_models)
    model = tills.reload_spec()
    tills.deliver(10)
    tills.publish(model, DAYS)
    return folder


def change_code(folder: Path) -> ModelSpec:
    (folder / "units.py").write_text("PER_DOLLAR = 100.0\n")
    return tills.reload_spec()


def test_features_that_would_be_made_the_same_now_pass(folder: Path) -> None:
    assert check_features().message == "7 periods that the next retrains read, none stale"


def test_nothing_published_passes(folder: Path) -> None:
    for manifest in (folder.parents[1] / "home/lake/features/tills/_manifests").iterdir():
        manifest.unlink()
    assert check_features().message == "0 periods that the next retrains read, none stale"


def test_stale_days_fail_with_what_differs_and_the_fix(folder: Path) -> None:
    model = change_code(folder)
    tills.publish(model, DAYS[6:])
    problem, fix = failure(check_features)
    assert problem == (
        "tills is not retrained: 3 of 7 days of features of tills are stale; 3 days, 2024-01-04 – 2024-01-06: "
        "tills/units.py has changed"
    )
    assert "run `evergreen backfill tills --from 2024-01-04 --to 2024-01-06`" in fix


def test_stale_days_before_the_window_do_not_matter(folder: Path) -> None:
    model = change_code(folder)
    tills.publish(model, DAYS[3:])
    assert check_features().message.endswith("none stale")


def test_days_in_reach_of_the_newest_training_sets_views_count(folder: Path) -> None:
    model = change_code(folder)
    made = training_sets.training_set_dataset(model)
    made.publish("as_of=2024-01-09", "any", {}, {"definitions": {"takings": {"ttl_seconds": 86_400.0}}})
    tills.publish(model, DAYS[3:])
    problem, _ = failure(check_features)
    assert (
        "2 of 9 days of features of tills are stale; 2 days, 2024-01-02 – 2024-01-03: tills/units.py has changed"
        in problem
    )


def test_a_model_that_rebuilds_them_passes_and_says_so(folder: Path) -> None:
    change_code(folder)
    tills.change_spec(folder, "train=", 'stale_features="rebuild", train=')
    assert check_features().message.startswith("the next retrain of tills rebuilds: 7 of 7 days of features of tills")


def test_a_model_folder_that_is_broken_is_left_to_its_own_check(folder: Path) -> None:
    tills.reload_spec()
    (folder.parent / "broken").mkdir()
    (folder.parent / "broken/model.py").write_text("1 / 0\n")
    assert check_features().message.endswith("none stale")


def publish_late(folder: Path, *hours: float) -> None:
    """Let the days look as if each had been published so many hours after its end."""
    manifests = folder.parents[1] / "home/lake/features/tills/_manifests"
    for day, hour in zip(DAYS, hours, strict=True):
        at = (UTC_DAYS.end(day) + timedelta(hours=hour)).timestamp()
        os.utime(manifests / f"day={day}.json", (at, at))


def test_views_that_declare_nothing_are_served_when_they_are(folder: Path) -> None:
    publish_late(folder, *[48] * 10)
    assert check_serving().message == "0 views declare when they are served, none is later"


def test_a_view_that_is_served_later_than_declared_fails_with_the_fix(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]
) -> None:
    tills.write_model(tmp_path, monkeypatch, use_models, has_views=True)
    file = tmp_path / "feature_repo/tills.py"
    source = 'feature_source("tills", "takings"'
    file.write_text(file.read_text().replace(source, f'{source}, served_after="2h"'))
    publish_late(folder, *[1] * 10)
    assert check_serving().message == "1 views declare when they are served, none is later"
    publish_late(folder, *[1] * 8, 5, 5.5)
    problem, fix = failure(check_serving)
    assert problem == (
        "view takings declares served_after='2h', and 2 of the last 9 publications were later, the latest 5:30:00 "
        "after the end of the period"
    )
    assert fix.startswith("declare served_after='6h' in feature_repo/tills.py")
    file.write_text(file.read_text().replace('"2h"', '"36h"'))
    problem, _ = failure(check_serving)
    assert "has a ttl of 1 day, 0:00:00, and is served 36h after its period: no row ever holds" in problem


def test_tables_are_readable_or_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_TABLES", "delta")
    settings.cache_clear()
    assert check_tables().message == "0 tables, all readable"
    assert CliRunner().invoke(app, ["tables", "sync", "tills"]).exit_code == 0
    assert check_tables().message == "2 tables, all readable"
    log = settings().lake / "features/tills/takings/_delta_log"
    (log / f"{0:020}.json").write_text("x")
    with pytest.raises(TableError, match=r"tills/takings/_delta_log is damaged: .*: move it away, and run"):
        check_tables()
