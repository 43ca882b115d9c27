"""A model's whole life with its lake in an object store: the same content as with a lake in a folder."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from evergreen import backtest, evaluation, ledger
from evergreen.feature_store import online_store
from evergreen.features import planning
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.ingest.raw_files import raw_file
from evergreen.lake import datasets
from evergreen.lineage import trace_version
from evergreen.periods import Calendar
from evergreen.promotion import service
from evergreen.promotion.service import EvaluationContext, PromotionRequest
from evergreen.registry import versions
from evergreen.settings import settings
from evergreen.storage import file_sha256
from evergreen.window import DagRunInfo, RunReason, Window
from integration.conftest import DAYS
from support import small_models, tills
from support.calendars import later
from support.january import JANUARY_MODEL, SPEC, train_candidate
from support.object_stores import STORES, open_store
from support.s3_server import S3

pytestmark = pytest.mark.integration

MODEL = JANUARY_MODEL


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


def promote(end: int) -> str:
    examples, candidate = train_candidate(end)
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
    trace = trace_version(MODEL.name)
    assert (trace.version, trace.problems) == ("2", ())
    assert {period.content for period in trace.features} <= set(published.values())
    flights = {name: hashes for name, hashes in trace.raw_files.items() if name.startswith("flights-")}
    delivered = {f"flights-{day}": {file_sha256(raw_file("flights", str(day)))} for day in DAYS}
    assert flights.items() <= delivered.items()
    assert len(flights) == len(trace.features)
    checked = {check.name: {check.sha256} for check in trace.checks if check.expectations and check.faults == 0}
    assert flights.items() <= checked.items()
    assert [(span.end, span.event.kind) for span in trace.champion] == [(None, "promoted")]
    [first] = trace_version(MODEL.name, "previous").champion
    assert first.end == trace.champion[0].since
    # Another machine has nothing but what is in the bucket.
    shutil.rmtree(settings().cache)
    examples, candidate = train_candidate(15)
    report = backtest.add_candidate(MODEL, "2013-01-15", examples, candidate)
    assert backtest.BacktestResults.read(report.with_name("results.json")).steps[0].as_of == "2013-01-15"
    window = Window.from_range("2013-01-01", "2013-01-18", RunReason.MANUAL, Calendar("1d", "America/New_York"))
    assert online_store.materialize_features(MODEL, window) == {"start": "2013-01-16", "end": "2013-01-18"}
    assert online_store.materialize_features(MODEL, window) == {}


@pytest.fixture
def tills_in_store(
    use_home: Callable[[Path], Path],
    use_models: small_models.UseModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[S3]:
    """The small model, with its lake in our server, which has few objects in a page of a listing."""
    monkeypatch.setenv("EVERGREEN_RAW", str(tmp_path / "raw"))
    with open_store("own", monkeypatch) as (uri, server):
        assert server
        server.page_length = 10
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        use_home(tmp_path / "home")
        tills.write_model(tmp_path, monkeypatch, use_models, has_views=True)
        yield server


def test_requests_of_a_day_do_not_grow_with_history(tills_in_store: S3) -> None:
    def count_requests(history: int) -> Counter[tuple[str, str]]:
        """Return the requests of the run of the day after so many, by method and place without its dates."""
        model = tills.reload_spec()
        tills.deliver(history + 1)
        tills.publish(model, tills.days(history), tills.NO_ROWS_OF_VIEWS)
        day = tills.days(history + 1)[-1]
        window = Window.from_range(day, later(day, 1), RunReason.MANUAL, Calendar("1d", "UTC"))
        online_store.materialize_features(
            model, Window.from_range(tills.days(history)[-2], day, RunReason.MANUAL, Calendar("1d", "UTC"))
        )
        first = len(tills_in_store.requests)
        run = DagRunInfo(run_id=f"manual__{day}", run_type="manual", requested_at=datetime.now(UTC))
        periods = planning.periods_to_publish(model, run, window)
        assert planning.claim_periods_to_build(model, run, periods, lambda **_: 0) == ([day], [])
        assert list(run_feature_pipeline(model, periods)) == [day]
        online_store.materialize_features(model, window)
        requests = tills_in_store.requests[first:]
        return Counter((method, re.sub(r"[0-9a-f]{8,}|\d{4}-\d\d-\d\d", "…", path)) for method, path in requests)

    count_requests(4)  # what is done once for all days
    few, many = count_requests(8), count_requests(30)
    assert many == few
    assert few.total() < 60
