"""The task `materialize` of the features DAG: what runs load into the online store, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped

from evergreen.errors import SpecError, StaleFeaturesError
from evergreen.feature_store import online_store, repository
from evergreen.feature_store.offline_store import RetrievalError
from evergreen.features import staleness
from evergreen.orchestration.dags import features
from evergreen.orchestration.handover import FeaturesPlan, StepResult
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason
from support import ponds as ponds_data
from support import tills
from support.small_models import write_small_model

pytestmark = pytest.mark.dag


@pytest.fixture
def ponds(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A model with two views, a day of features, and an online store in a file."""
    modules = {"model": ponds_data.SPEC, "features": ""}
    return write_small_model("ponds", tmp_path, monkeypatch, use_models, ponds_data.DEFINITIONS, **modules)


def day(number: int) -> str:
    return f"2013-01-{number:02d}"


def load(
    monkeypatch: pytest.MonkeyPatch,
    periods: Sequence[int],
    reason: RunReason = RunReason.SCHEDULE,
    *,
    announce: bool | None = None,
    built: Sequence[int] = (),
    published: Sequence[int] | None = None,
) -> dict[str, str]:
    """Run the task, in a run about `periods` that has `built` some, and `published` these of them."""
    monkeypatch.setattr(features, "get_current_context", lambda: {"params": {"announce": announce}})
    plan = FeaturesPlan(run_reason=reason, periods=tuple(map(day, periods)), build_periods=tuple(map(day, built)))
    result = None if published is None else StepResult(periods={day(number): "hash" for number in published}).dump()
    loaded: dict[str, str] = features.materialize.function("ponds", plan.dump(), result)
    return loaded


def span(start: int, end: int) -> dict[str, str]:
    return {"start": day(start), "end": day(end)}


def level(pond: str = "a", feature: str = "levels:level") -> float | None:
    response = repository.open_feature_store("ponds").get_online_features([feature], [{"pond": pond}]).to_dict()
    return response[feature.split(":")[1]][0]


def watermark(model: ModelSpec) -> datetime | None:
    state = online_store.materialization_state(model)
    return datetime.fromisoformat(state["watermark"]) if state else None


def test_each_run_loads_what_it_publishes(ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ponds_data.publish(5, 6, 7)
    assert load(monkeypatch, [7], built=[7], published=[7]) == span(5, 8)
    assert (level(), level(feature="depths:depth")) == (7.23, 107.23), "also a view that the model's service lacks"
    assert load(monkeypatch, [7]) == {}, "it is published, and in the store"
    ponds_data.publish(8)
    assert load(monkeypatch, [8], RunReason.ARRIVAL, built=[8], published=[8]) == span(8, 9)
    assert level() == 8.23


def test_an_older_period_replaces_no_newer_value(ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ponds_data.publish(5, 6, 8)
    load(monkeypatch, [8])
    ponds_data.publish(7, ponds="az")
    assert load(monkeypatch, [7], RunReason.ARRIVAL, built=[7], published=[7]) == span(7, 9)
    assert (level("a"), level("z")) == (8.23, 7.23), "the late day gives what no later one has"
    ponds_data.publish(6, values={("a", 23): 0.5})
    assert load(monkeypatch, [6], RunReason.MANUAL, built=[6], published=[6]) == span(6, 9)
    assert level("a") == 8.23
    assert watermark(ponds) == ponds_data.window(9).as_of


def test_a_run_goes_no_further_than_its_own_periods(ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ponds_data.publish(5, 6, 9)  # the last one by a backfill
    assert load(monkeypatch, [6], built=[6, 9], published=[6, 9]) == span(5, 7)
    assert (level(), watermark(ponds)) == (6.23, ponds_data.window(7).as_of)


def test_periods_that_were_left_out_are_not_waited_for(ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ponds_data.publish(5, 6)
    assert load(monkeypatch, [6, 7], built=[6, 7], published=[6]) == span(5, 7)
    with pytest.raises(AirflowSkipException, match="all periods of the run were left out"):
        load(monkeypatch, [7], built=[6, 7], published=[6])
    assert watermark(ponds) == ponds_data.window(7).as_of


def test_periods_beyond_a_run_are_not_read(ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those of a backfill, by code that did not have a column yet."""
    ponds_data.publish(5, 6)
    publish_without_murk(7)
    declare_murk()
    assert load(monkeypatch, [6], built=[6], published=[6]) == span(5, 7)
    assert level(feature="levels:murk") == 6.23 / 2


def test_stale_periods_that_cannot_be_read_are_named_with_the_way_out(
    ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_without_murk(6)
    ponds_data.publish(7)
    declare_murk()
    with pytest.raises(StaleFeaturesError) as refused:
        load(monkeypatch, [7], built=[7], published=[7])
    subject, stale, cause = str(refused.value).splitlines()
    assert subject.startswith("the online store of ponds cannot be loaded: 2 of the 2 days that it reads are stale")
    assert "2 days, 2013-01-06 – 2013-01-07: " in stale
    assert "→ run `evergreen backfill ponds --from 2013-01-06 --to 2013-01-07`, then clear this task" in stale
    assert "murk: no such column in" in cause
    assert "declare one type" not in cause
    ponds_data.publish(6)
    assert load(monkeypatch, [7]) == span(6, 8)


def test_what_cannot_be_read_and_is_not_stale_is_told_as_it_is(
    ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_without_murk(6)
    declare_murk()
    monkeypatch.setattr(online_store, "find_stale_features", lambda *_: staleness.find_stale_features(ponds, {}))
    with pytest.raises(RetrievalError, match="murk: no such column in its files"):
        load(monkeypatch, [6])


def test_periods_to_load_are_those_that_are_read(ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ponds_data.publish(*range(3, 12))
    window = ponds_data.window(9)
    loaded = [day(number) for number in range(5, 9)]  # 72 hours before the ninth, and a day that may reach into them
    assert online_store.periods_to_load(ponds, window) == loaded
    load(monkeypatch, [10])
    later_periods = online_store.periods_to_load(ponds, window)
    assert later_periods == [day(number) for number in range(7, 11)], "the store is up to the tenth, and stays so"


def publish_without_murk(number: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        write = ponds_data.pq.write_table
        drop = lambda table, file: write(  # noqa: E731
            table.drop_columns(["murk"]) if "murk" in table.column_names else table, file
        )
        patch.setattr(ponds_data.pq, "write_table", drop)
        ponds_data.publish(number, values={("a", 0): 0.5})


def declare_murk() -> None:
    text = ponds_data.DEFINITIONS.replace('"level")', '"level", "murk")')
    ponds_data.write_definitions(text, repository.settings().feature_repo)


def test_a_backfill_loads_only_if_its_conf_says_so(ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ponds_data.publish(5, 6)
    for reason, announce in ((RunReason.BACKFILL, None), (RunReason.BACKFILL, False), (RunReason.MANUAL, False)):
        with pytest.raises(AirflowSkipException, match="does not load the online store"):
            load(monkeypatch, [6], reason, announce=announce, built=[6], published=[6])
    assert watermark(ponds) is None
    assert load(monkeypatch, [6], RunReason.BACKFILL, announce=True, built=[6], published=[6]) == span(5, 7)
    assert level() == 6.23


def test_it_holds_up_nobody_who_waits_for_features(ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    dag = features.features_dag(ponds)
    task, retrain = dag.get_task("materialize"), dag.get_task("announce")
    assert task.upstream_task_ids == retrain.upstream_task_ids
    assert not task.downstream_task_ids
    assert (task.trigger_rule, task.max_active_tis_per_dag) == (retrain.trigger_rule, 1)
    assert (task.retries, task.retry_policy) == (retrain.retries, retrain.retry_policy)
    ponds_data.publish(6)
    without = ponds_data.DEFINITIONS.replace('name="ponds", features=[levels]', 'name="ponds", features=[rivers]')
    (repository.settings().feature_repo / "ponds.py").write_text(without)
    with pytest.raises(SpecError, match="view rivers is not over the features of ponds"):  # as a retrain says it
        load(monkeypatch, [6])


@pytest.mark.parametrize(
    ("run_type", "announce", "kept"),
    [
        ("manual", None, {"announce", "materialize"}),
        ("manual", False, set()),
        ("backfill", None, set()),
        ("backfill", True, {"announce", "materialize"}),
    ],
)
def test_a_run_that_builds_nothing_announces_and_loads_alike(
    run_type: str,
    announce: bool | None,
    kept: set[str],
    home: Path,
    tmp_path: Path,
    use_models: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as one that is cleared because the online store could not be reached."""
    tills.write_model(tmp_path, monkeypatch, use_models)
    model = tills.reload_spec()
    tills.deliver(2)
    tills.publish(model, tills.days(2))
    plan = features.features_dag(model).get_task("plan")
    start = datetime(2024, 1, 2, tzinfo=UTC)
    run = SimpleNamespace(
        run_type=SimpleNamespace(value=run_type),
        data_interval_start=start,
        data_interval_end=datetime(2024, 1, 3, tzinfo=UTC),
        logical_date=start if run_type == "backfill" else None,
        run_after=datetime(2024, 1, 3, tzinfo=UTC),
        run_id="a run",
        start_date=start,
        consumed_asset_events=[],
    )
    params = {"announce": announce} | ({"start": tills.days(2)[1]} if run_type == "manual" else {})
    pushed: dict[str, Any] = {}
    context = {"dag_run": run, "params": params, "ti": SimpleNamespace(xcom_push=pushed.__setitem__)}
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        plan.execute(context)
    assert FeaturesPlan.load(pushed["return_value"]).build_periods == ()
    downstream = {"check_raw", "build", "check_features", "publish", "announce", "materialize", "report_faults"}
    assert downstream - set(skipped.value.tasks) == kept
