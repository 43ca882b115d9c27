"""Candidates of four dates become one report, in whatever order they are added."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import pytest

from evergreen import backtest, evaluation, storage
from evergreen.errors import FaultsError
from evergreen.feature_store import training_sets
from evergreen.lake import datasets
from evergreen.periods import Calendar, Duration
from evergreen.reports import backtest as backtest_report
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.training import candidates
from evergreen.training.backends import process
from evergreen.window import RunReason, Window
from support.calendars import later

pytestmark = pytest.mark.integration

SPEC = loader.load_spec("flight_delay")
MODEL = SPEC.model_copy(
    update={
        "train": Duration(6, "d"),
        "holdout": Duration(2, "d"),
        "parameters": {**SPEC.parameters, "rounds": 12},
        # Two days are too few to know whether a candidate beats the prior.
        "gates": tuple(gate for gate in SPEC.gates if gate.kind != "baseline"),
    }
)
CHANGED = MODEL.model_copy(update={"parameters": {**MODEL.parameters, "max_depth": 2}})
DATES = [f"2013-01-{day:02d}" for day in (9, 11, 13, 15)]

Examples = dict[str, datasets.Manifest]
Candidates = dict[tuple[str, str], datasets.Manifest]
Trained = tuple[Path, Examples, Candidates]


@pytest.fixture(scope="module")
def trained_home(january: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A home with the training sets and candidates of all dates, and one candidate of a changed spec."""
    home = tmp_path_factory.mktemp("backtest") / "home"
    shutil.copytree(january, home)
    before = os.environ["EVERGREEN_HOME"]
    os.environ["EVERGREEN_HOME"] = str(home)
    settings.cache_clear()
    source = training_sets.training_set_dataset(MODEL)
    examples, trained = {}, {}
    for day in DATES:
        window = Window.from_range(
            later(day, -sum(duration.count for duration in MODEL.history)),
            day,
            RunReason.BACKFILL,
            Calendar("1d", "America/New_York"),
        )
        examples[day] = training_sets.build_training_set(MODEL, window)
        features = training_sets.model_input_columns(MODEL)
        trained["unchanged", day] = process.train_in_process(MODEL, examples[day], source, features)
    trained["changed", DATES[-1]] = process.train_in_process(CHANGED, examples[DATES[-1]], source, features)
    os.environ["EVERGREEN_HOME"] = before
    settings.cache_clear()
    return home, examples, trained


@pytest.fixture
def use_copy(trained_home: Trained, use_home: Callable[[Path], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copy the home, use the copy, and return the folder that the backtest will be in."""

    def copy(name: str) -> Path:
        shutil.copytree(trained_home[0], tmp_path / name)
        return use_home(tmp_path / name) / "lake/backtests/flight_delay"

    return copy


def add(trained_home: Trained, day: str, model: ModelSpec = MODEL) -> Path:
    _, examples, trained = trained_home
    kind = "unchanged" if model is MODEL else "changed"
    return backtest.add_candidate(model, day, examples[day], trained[kind, day])


def files_of(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "results.json").read_bytes(), (folder / "report.html").read_bytes()


@pytest.fixture
def in_order(trained_home: Trained, use_copy: Callable[[str], Path]) -> tuple[bytes, bytes]:
    folder = use_copy("in order")
    for day in DATES:
        assert add(trained_home, day) == folder / "report.html"
    return files_of(folder)


def test_order_concurrency_and_repeats_give_equal_bytes(
    trained_home: Trained, use_copy: Callable[[str], Path], in_order: tuple[bytes, bytes]
) -> None:
    folder = use_copy("newest first")
    for day in reversed(DATES):
        add(trained_home, day)
    assert files_of(folder) == in_order
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    add(trained_home, DATES[1])
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file() and not f.name.endswith("lock")} == {
        f: at for f, at in written.items() if not f.name.endswith("lock")
    }
    folder = use_copy("at once")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda day: add(trained_home, day), DATES))
    assert files_of(folder) == in_order


def test_report_is_complete_and_touches_no_registry(
    trained_home: Trained, use_copy: Callable[[str], Path], in_order: tuple[bytes, bytes]
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
    # Nothing else in the home changed: no registry, no online features, no candidate.
    assert _other_files(settings().home) == _other_files(trained_home[0])


def _other_files(home: Path) -> dict[str, str]:
    """Return the hashes of all files of a home outside of backtests."""
    return {
        str(file.relative_to(home)): storage.file_sha256(file)
        for file in home.rglob("*")
        if file.is_file() and "backtests" not in file.parts
    }


def test_metrics_are_of_models_on_later_weeks(trained_home: Trained, in_order: tuple[bytes, bytes]) -> None:
    import pyarrow.parquet as pq
    import xgboost
    from sklearn.metrics import roc_auc_score

    results = backtest.BacktestResults.model_validate_json(in_order[0])
    _, examples, trained = trained_home
    for policy, trained_on in (("never", DATES[0]), ("every_date", DATES[2])):
        candidate = trained["unchanged", trained_on]
        booster = xgboost.Booster(model_file=candidates.candidate_dataset(MODEL).file_path(candidate, "model.ubj"))
        week = pq.read_table(training_sets.training_set_dataset(MODEL).file_path(examples[DATES[3]], "holdout"))
        scores = booster.predict(xgboost.DMatrix(week.select(list(candidate.inputs["features"])).to_pandas()))
        value = results.policy(policy).metric_values[2]
        assert value == pytest.approx(roc_auc_score(week["label"].to_numpy(), scores), abs=1e-9)


def test_changed_parameter_starts_a_new_backtest(trained_home: Trained, use_copy: Callable[[str], Path]) -> None:
    folder = use_copy("changed")
    for day in DATES[:3]:
        add(trained_home, day)
    add(trained_home, DATES[3], CHANGED)
    results = backtest.BacktestResults.read(folder / "results.json")
    assert [day.as_of for day in results.steps] == DATES[3:]
    assert results.excluded_candidates == 3
    assert "3 candidates of another spec" in " ".join((folder / "report.html").read_text().split())


@pytest.mark.parametrize("killed", ["before the report", "before the results"])
def test_next_run_completes_a_killed_one(
    trained_home: Trained,
    use_copy: Callable[[str], Path],
    in_order: tuple[bytes, bytes],
    monkeypatch: pytest.MonkeyPatch,
    killed: str,
) -> None:
    folder = use_copy("killed")
    for day in DATES[:2]:
        add(trained_home, day)
    with monkeypatch.context() as patch:
        owner, name = (
            (backtest_report, "render_backtest_report")
            if killed == "before the report"
            else (backtest.BacktestResults, "model_dump_json")
        )
        patch.setattr(owner, name, _die)
        with pytest.raises(KeyboardInterrupt):
            add(trained_home, DATES[2])
    before = backtest.BacktestResults.read(folder / "results.json")
    assert len(before.steps) == 2
    add(trained_home, DATES[3])
    assert files_of(folder) == in_order


def _die(*_: object, **__: object) -> str:
    raise KeyboardInterrupt


def test_add_candidate_refuses_unrelated_inputs(trained_home: Trained, use_copy: Callable[[str], Path]) -> None:
    folder = use_copy("refused")
    _, examples, trained = trained_home
    with pytest.raises(FaultsError) as refused:
        backtest.add_candidate(SPEC, DATES[0], examples[DATES[1]], trained["unchanged", DATES[2]])
    assert len(refused.value.faults) == 3
    assert not folder.exists()
