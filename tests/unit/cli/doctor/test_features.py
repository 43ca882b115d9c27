"""The check of features: stale days of the next retrain's window, with what differs and how to rebuild them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.cli.doctor.features import check_features, check_tables
from evergreen.errors import TableError
from evergreen.feature_store import training_sets
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from support import tills
from support.checks import failure

pytestmark = pytest.mark.unit

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
    assert 'run tills.features with {"start": "2024-01-04", "end": "2024-01-06"}' in fix


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
