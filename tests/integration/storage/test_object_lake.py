"""A model's whole life with its lake in an object store: the same content as with a lake in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from evergreen import backtest, evaluation, ledger
from evergreen.feature_store import online_store, training_sets
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.gates import AgainstChampionGate, ThresholdGate
from evergreen.lake import datasets
from evergreen.periods import Calendar, Duration
from evergreen.promotion import service
from evergreen.promotion.service import EvaluationContext, PromotionRequest
from evergreen.registry import versions
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.training.backends import process
from evergreen.window import RunReason, Window
from integration.conftest import DAYS
from support.object_stores import STORES, open_store

pytestmark = pytest.mark.integration

SPEC = loader.load_spec("flight_delay")
MODEL = SPEC.model_copy(
    update={
        "gates": (
            ThresholdGate(metric="auc", at_least=0.5),
            AgainstChampionGate(metric="auc", must_be="not_worse", margin=0.2),
        ),
        "holdout": Duration(8, "d"),
        "parameters": {**SPEC.parameters, "rounds": 12},
        "monitor": None,
    }
)


@pytest.fixture(params=STORES)
def remote_home(
    request: pytest.FixtureRequest,
    january: Path,
    use_home: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SimpleNamespace]:
    """A home with 17 raw days, and a lake that is empty and in an object store."""
    shutil.copytree(january / "lake" / "raw", tmp_path / "raw")
    monkeypatch.setenv("EVERGREEN_RAW", str(tmp_path / "raw"))
    with open_store(request.param, monkeypatch) as (uri, server):
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        yield SimpleNamespace(home=use_home(tmp_path / "home"), server=server)


def train(end: int) -> tuple[datasets.Manifest, datasets.Manifest]:
    window = Window.from_range("2013-01-01", f"2013-01-{end:02d}", RunReason.MANUAL, Calendar("1d", "America/New_York"))
    examples = training_sets.build_training_set(MODEL, window)
    source = training_sets.training_set_dataset(MODEL)
    return examples, process.train_in_process(MODEL, examples, source, training_sets.model_input_columns(MODEL))


def promote(end: int) -> str:
    examples, candidate = train(end)
    champion = versions.find_champion(MODEL)
    evidence = evaluation.collect_evidence(MODEL, examples, candidate, champion)
    version = champion.version if champion else None
    context = EvaluationContext("a run", RunReason.MANUAL, examples, candidate, evidence, version)
    number = service.judge_candidate(MODEL, context)
    page = service.verdict_report_path(MODEL, number)
    assert "auc" in page.read_text()
    version = versions.register_candidate(MODEL, examples, candidate, number, page)
    assert service.promote_version(MODEL, PromotionRequest(number, version, RunReason.MANUAL), actor="a test") is None
    return version


def test_features_to_champion_is_the_same_in_a_bucket(remote_home: SimpleNamespace, january: Path) -> None:
    published = run_feature_pipeline(SPEC, DAYS)
    local = datasets.dataset_at(january / "lake" / "features" / SPEC.name)
    assert published == {str(day): local.manifest(f"day={day}").content_hash for day in DAYS}  # type: ignore[union-attr]
    assert run_feature_pipeline(SPEC, DAYS) == published
    assert not (remote_home.home / "lake").exists()
    assert [promote(11), promote(15)] == ["1", "2"]
    assert ledger.read_state(MODEL.name).champion == "2"
    # Another machine has nothing but what is in the bucket.
    shutil.rmtree(settings().cache)
    examples, candidate = train(15)
    report = backtest.add_candidate(MODEL, "2013-01-15", examples, candidate)
    assert backtest.BacktestResults.read(report.with_name("results.json")).steps[0].as_of == "2013-01-15"
    window = Window.from_range("2013-01-01", "2013-01-18", RunReason.MANUAL, Calendar("1d", "America/New_York"))
    assert online_store.materialize_features(MODEL, window) == {"start": "2013-01-16", "end": "2013-01-18"}
    assert online_store.materialize_features(MODEL, window) == {}
