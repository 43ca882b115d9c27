"""Candidates of four dates become one report, whoever comes when."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from itertools import combinations
from pathlib import Path

import pytest

from evergreen import backtest, evaluation, storage
from evergreen.errors import FaultsError
from evergreen.feature_store import training_sets
from evergreen.lake import datasets
from evergreen.reports import backtest as backtest_report
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.training import candidates
from evergreen.training.backends import process
from evergreen.window import RunReason, Window

pytestmark = pytest.mark.integration

SPEC = loader.load_spec("flight_delay")
MODEL = SPEC.model_copy(update={"train_days": 6, "holdout_days": 2, "parameters": {**SPEC.parameters, "rounds": 12}})
CHANGED = MODEL.model_copy(update={"parameters": {**MODEL.parameters, "max_depth": 2}})
DATES = [date(2013, 1, day) for day in (9, 11, 13, 15)]

Examples = dict[date, datasets.Manifest]
Candidates = dict[tuple[str, date], datasets.Manifest]
Made = tuple[Path, Examples, Candidates]


@pytest.fixture(scope="module")
def made(january: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A home with the training sets and candidates of all dates, and one candidate of a changed spec."""
    home = tmp_path_factory.mktemp("backtest") / "home"
    shutil.copytree(january, home)
    before = os.environ["EVERGREEN_HOME"]
    os.environ["EVERGREEN_HOME"] = str(home)
    settings.cache_clear()
    source = training_sets.training_set_dataset(MODEL)
    examples, trained = {}, {}
    for day in DATES:
        window = Window.from_range(day - timedelta(MODEL.history_days), day, RunReason.BACKFILL, "America/New_York")
        examples[day] = training_sets.build_training_set(MODEL, window)
        features = training_sets.model_input_columns(MODEL)
        trained["as it is", day] = process.train_in_process(MODEL, examples[day], source, features)
    trained["changed", DATES[-1]] = process.train_in_process(CHANGED, examples[DATES[-1]], source, features)
    os.environ["EVERGREEN_HOME"] = before
    settings.cache_clear()
    return home, examples, trained


@pytest.fixture
def lake_of(made: Made, use_home: Callable[[Path], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A fresh copy of the home, in use; gives the folder that the backtest will be in."""

    def copy(name: str) -> Path:
        shutil.copytree(made[0], tmp_path / name)
        return use_home(tmp_path / name) / "lake/backtests/flight_delay"

    return copy


def add(made: Made, day: date, model: ModelSpec = MODEL) -> Path:
    _, examples, trained = made
    kind = "as it is" if model is MODEL else "changed"
    return backtest.add_candidate(model, day, examples[day], trained[kind, day])


def outcome(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "results.json").read_bytes(), (folder / "report.html").read_bytes()


@pytest.fixture
def in_order(made: Made, lake_of: Callable[[str], Path]) -> tuple[bytes, bytes]:
    folder = lake_of("in order")
    for day in DATES:
        assert add(made, day) == folder / "report.html"
    return outcome(folder)


def test_newest_first_all_at_once_and_twice_come_to_the_same_bytes(
    made: Made, lake_of: Callable[[str], Path], in_order: tuple[bytes, bytes]
) -> None:
    folder = lake_of("newest first")
    for day in reversed(DATES):
        add(made, day)
    assert outcome(folder) == in_order
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    add(made, DATES[1])
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file() and f.name != ".lock"} == {
        f: at for f, at in written.items() if f.name != ".lock"
    }
    folder = lake_of("at once")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda day: add(made, day), DATES))
    assert outcome(folder) == in_order


def test_what_is_reported_is_whole_and_touches_no_registry(
    made: Made, lake_of: Callable[[str], Path], in_order: tuple[bytes, bytes]
) -> None:
    results = backtest.BacktestResults.model_validate_json(in_order[0])
    page = in_order[1].decode()
    assert [day.as_of for day in results.steps] == DATES
    assert results.steps[0].champion_as_of is None
    assert [period.start for period in results.periods] == DATES[:-1]
    assert results.policy("every_date").training_count == 4
    for one, other in combinations(results.policies, 2):  # the first candidate is the same for all
        assert one.metric_values[0] == other.metric_values[0]
    for day in results.steps:
        assert [record.gate for record in day.verdict.results] == [
            gate.name for gate in evaluation.backtest_gates(MODEL)[0]
        ]
        assert f">{day.as_of}</td>" in page
    assert "<script" not in page
    assert 'src="http' not in page
    assert "<svg" in page
    assert "mean auc" in "\n".join(backtest.summary_lines(results))
    # All else in the home is as it was: no registry, no online features, no candidate.
    assert _others(settings().home) == _others(made[0])


def _others(home: Path) -> dict[str, str]:
    """What lies in a home outside of backtests, by content."""
    return {
        str(file.relative_to(home)): storage.file_sha256(file)
        for file in home.rglob("*")
        if file.is_file() and "backtests" not in file.parts
    }


def test_scores_are_those_of_the_models_on_the_weeks_after_them(made: Made, in_order: tuple[bytes, bytes]) -> None:
    import pyarrow.parquet as pq
    import xgboost
    from sklearn.metrics import roc_auc_score

    results = backtest.BacktestResults.model_validate_json(in_order[0])
    _, examples, trained = made
    for policy, trained_on in (("never", DATES[0]), ("every_date", DATES[2])):
        candidate = trained["as it is", trained_on]
        booster = xgboost.Booster(model_file=candidates.candidate_dataset(MODEL).file_path(candidate, "model.ubj"))
        week = pq.read_table(training_sets.training_set_dataset(MODEL).file_path(examples[DATES[3]], "holdout"))
        scores = booster.predict(xgboost.DMatrix(week.select(list(candidate.inputs["features"])).to_pandas()))
        found = results.policy(policy).metric_values[2]
        assert found == pytest.approx(roc_auc_score(week["label"].to_numpy(), scores), abs=1e-9)


def test_a_changed_parameter_starts_anew(made: Made, lake_of: Callable[[str], Path]) -> None:
    folder = lake_of("changed")
    for day in DATES[:3]:
        add(made, day)
    add(made, DATES[3], CHANGED)
    results = backtest.BacktestResults.read(folder / "results.json")
    assert [day.as_of for day in results.steps] == DATES[3:]
    assert results.excluded_candidates == 3
    assert "3 candidates of another spec" in " ".join((folder / "report.html").read_text().split())


@pytest.mark.parametrize("killed", ["before the report", "before the results"])
def test_what_a_killed_run_left_is_completed_by_the_next(
    made: Made,
    lake_of: Callable[[str], Path],
    in_order: tuple[bytes, bytes],
    monkeypatch: pytest.MonkeyPatch,
    killed: str,
) -> None:
    folder = lake_of("killed")
    for day in DATES[:2]:
        add(made, day)
    with monkeypatch.context() as patch:
        where, what = (
            (backtest_report, "html")
            if killed == "before the report"
            else (backtest.BacktestResults, "model_dump_json")
        )
        patch.setattr(where, what, _die)
        with pytest.raises(KeyboardInterrupt):
            add(made, DATES[2])
    before = backtest.BacktestResults.read(folder / "results.json")
    assert len(before.steps) == 2
    add(made, DATES[3])
    assert outcome(folder) == in_order


def _die(*_: object, **__: object) -> str:
    raise KeyboardInterrupt


def test_what_does_not_belong_together_is_refused(made: Made, lake_of: Callable[[str], Path]) -> None:
    folder = lake_of("refused")
    _, examples, trained = made
    with pytest.raises(FaultsError) as refused:
        backtest.add_candidate(SPEC, DATES[0], examples[DATES[1]], trained["as it is", DATES[2]])
    assert len(refused.value.faults) == 3
    assert not folder.exists()
