"""The events that Airflow's provider of OpenLineage sends for our tasks, with a real listener and transport."""

from __future__ import annotations

import json
import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.bundles.local import LocalDagBundle
from airflow.sdk import DAG, TaskInstanceState
from airflow.sdk.api.datamodels._generated import DagRun, DagRunState, DagRunType, TIRunContext
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetXComSequenceSlice, XComSequenceSliceResult
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance, TaskRunnerMarker

from evergreen.orchestration.dags import airflow_dags
from evergreen.orchestration.dags.monitor import monitor_dag
from evergreen.orchestration.handover import FeaturesPlan, RetrainPlan, StepResult
from evergreen.orchestration.task_lineage import DESCRIPTIONS, describe_tasks
from evergreen.plugin import lineage
from evergreen.plugin.lineage import LineageListener, wait_for_events
from evergreen.plugin.provider import convert_asset, get_provider_info
from evergreen.spec.auto_rollback import AutoRollbackPolicy
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import ApprovalPolicy
from evergreen.window import RunReason
from support.ledger_events import MODEL, day
from support.lineage_chain import AS_OF, DAYS, Chain, publish_report

pytestmark = pytest.mark.dag

# They plan, or ask; and `build` and `check_features` work on what nobody reads before `publish`.
WITHOUT = {
    "plan",
    "build",
    "check_features",
    "report_faults",
    "rebuild",
    "approve",
    "request_retrain",
    "compare_previous",
    "approve_rollback",
}


class Supervisor:
    """Stands in for Airflow: has what tasks have handed over."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}

    def send(self, msg: Any) -> Any:
        assert isinstance(msg, GetXComSequenceSlice), msg
        result = self.results.get(msg.task_id)
        return XComSequenceSliceResult(root=[] if result is None else [result])


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch, home: Path) -> Supervisor:
    supervisor = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


@pytest.fixture
def new_listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Mapping[str, Any]], Any]]:
    """Return a function that makes the provider's listener, as a task has it that sends by this transport."""

    def create(transport: Mapping[str, Any]) -> Any:
        from airflow.providers.openlineage.plugins.listener import OpenLineageListener

        monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", json.dumps(transport))
        monkeypatch.setenv("AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD", "True")
        monkeypatch.setenv("AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT", "0")
        return OpenLineageListener()

    yield create
    assert wait_for_events(30) == []


def instance(dag: DAG, task_id: str) -> RuntimeTaskInstance:
    now = datetime(2013, 3, 1, tzinfo=UTC)
    run = DagRun(
        dag_id=dag.dag_id,
        run_id="manual__1",
        logical_date=now,
        data_interval_start=now,
        data_interval_end=now,
        run_after=now,
        start_date=now,
        end_date=None,
        run_type=DagRunType.MANUAL,
        state=DagRunState.RUNNING,
        consumed_asset_events=[],
        partition_key=None,
    )
    return RuntimeTaskInstance.model_construct(
        id=uuid.uuid4(),
        task=dag.get_task(task_id),
        task_id=task_id,
        dag_id=dag.dag_id,
        run_id=run.run_id,
        try_number=1,
        map_index=-1,
        pool_slots=1,
        bundle_instance=LocalDagBundle(name="dags", path="/"),
        start_date=now,
        end_date=now,
        _ti_context_from_server=TIRunContext(dag_run=run, max_tries=0),
    )


def test_every_task_says_what_it_reads_and_writes_or_does_neither() -> None:
    with_rollbacks = load_spec("flight_delay").model_copy(
        update={"auto_rollback": AutoRollbackPolicy(metric="log_loss"), "approval": ApprovalPolicy(timeout_hours=2)}
    )
    describe_tasks("flight_delay", monitor := monitor_dag(with_rollbacks))
    dags = [
        monitor,
        *(dag for name in (MODEL, "departure_counts", "flight_delay_net") for dag in airflow_dags(name).values()),
    ]
    tasks = {f"{dag.dag_id.rpartition('.')[2]}.{task.task_id}": task for dag in dags for task in dag.tasks}
    described = {name for name, task in tasks.items() if hasattr(task, "get_openlineage_facets_on_complete")}
    assert described == DESCRIPTIONS.keys()
    assert {name.partition(".")[2] for name in tasks.keys() - described} <= WITHOUT


def results_of(chain: Chain) -> dict[str, dict[str, Any]]:
    """Return what the tasks of each DAG have handed over."""
    features, calendar = dict(zip(DAYS, chain.features, strict=True)), feature_spec(load_spec(MODEL)).calendar
    plan = FeaturesPlan(run_reason=RunReason.MANUAL, periods=tuple(DAYS), build_periods=tuple(DAYS)).dump()
    published = StepResult(periods={period: item.content_hash for period, item in features.items()}).dump()
    retrain_plan = RetrainPlan(start=DAYS[0], end=day(AS_OF), run_reason=RunReason.MANUAL, calendar=calendar)
    trained = {
        "training_set_reference": chain.training_set.reference,
        "candidate_reference": chain.candidate.reference,
    }
    evaluated = {**trained, "evaluation_reference": chain.evaluation.reference}
    return {
        "features": {"plan": plan, "check_raw": published, "publish": published, "announce": DAYS},
        "retrain": {
            "plan": retrain_plan.dump(),
            "materialize": {"start": DAYS[0], "end": day(len(DAYS))},
            "training_set": chain.training_set.reference,
            "train": trained,
            "evaluate": evaluated,
            "judge": {**evaluated, "entry": chain.entry, "report": "report.html"},
            "register": chain.version,
            "promote": chain.version,
        },
        "score": {"plan": None, "score": [DAYS[2]]},
    }


def read_events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def version(dataset: Mapping[str, Any]) -> str | None:
    facet = dataset["facets"].get("version")
    return facet and facet["datasetVersion"]


def test_each_task_reads_what_an_earlier_one_has_written(
    supervisor: Supervisor, new_listener: Callable[[Mapping[str, Any]], Any], tmp_path: Path, score_dag: DAG
) -> None:
    file = tmp_path / "events.jsonl"
    listener = new_listener({"type": "file", "log_file_path": str(file), "append": True})
    chain = Chain.publish()
    for manifest in chain.features:
        for name, sha256 in manifest.inputs["raw"].items():
            publish_report(name, sha256)
    dags = {dag.dag_id.rpartition(".")[2]: dag for dag in [*airflow_dags(MODEL).values(), score_dag]}
    for kind, results in results_of(chain).items():
        supervisor.results = results
        for task_id in results:
            task_instance = instance(dags[kind], task_id)
            listener.on_task_instance_running(None, task_instance)
            assert wait_for_events(30) == []
            listener.on_task_instance_success(TaskInstanceState.RUNNING, task_instance)
            assert wait_for_events(30) == []
    events = read_events(file)
    assert [event["eventType"] for event in events[:2]] == ["START", "COMPLETE"]
    complete = {event["job"]["name"]: event for event in events if event["eventType"] == "COMPLETE"}
    assert len(events) == 2 * len(complete) == 2 * sum(map(len, results_of(chain).values()))
    written: dict[tuple[str, str], set[str | None]] = {}
    for name, event in complete.items():
        parent = f"{MODEL}.{name.split('.')[1]}"
        assert event["run"]["facets"]["parent"]["job"]["name"] == parent, "the run of the DAG"
        for dataset in event["inputs"]:
            place = dataset["namespace"], dataset["name"]
            if "/raw/" in dataset["name"] or place[1].endswith(("planes.parquet", "airports.parquet")):
                continue
            if name != f"{MODEL}.retrain.promote" or "ledger" not in place[1]:
                assert place in written, f"{name} reads {place}, which no task has written"
            # Of one partition the version is that of its writer; of several, that of all that were read.
            if dataset["inputFacets"].get("inputStatistics", {"fileCount": 1})["fileCount"] == 1:
                assert version(dataset) in written[place] or "ledger" in place[1], f"{name}: another version of {place}"
        for dataset in event["outputs"]:
            written.setdefault((dataset["namespace"], dataset["name"]), set()).add(version(dataset))
    judged = complete[f"{MODEL}.retrain.judge"]["run"]["facets"]
    assert judged["test"]["tests"][0]["status"] == "pass"
    assert judged["evergreen_model"]["verdict"] == "promote"
    assert complete[f"{MODEL}.retrain.plan"]["outputs"] == []
    [asset] = complete[f"{MODEL}.features.announce"]["outputs"]
    assert asset["name"].endswith(f"lake/features/{MODEL}")


@pytest.fixture
def score_dag() -> DAG:
    """The DAG that scores, which `flight_delay` does not have."""
    from evergreen.orchestration.dags.score import score_dag
    from evergreen.orchestration.task_lineage import describe_tasks
    from evergreen.spec.model import ScorePolicy

    dag = score_dag(load_spec(MODEL), ScorePolicy())
    describe_tasks(MODEL, dag)
    return dag


def test_a_task_that_failed_has_written_nothing(
    supervisor: Supervisor, new_listener: Callable[[Mapping[str, Any]], Any], tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    listener = new_listener({"type": "file", "log_file_path": str(file), "append": True})
    chain = Chain.publish()
    supervisor.results = results_of(chain)["features"] | {"check_raw": None, "announce": None}
    dag = airflow_dags(MODEL)[f"{MODEL}_features"]
    for task_id in ("check_raw", "publish"):
        listener.on_task_instance_failed(TaskInstanceState.RUNNING, instance(dag, task_id), RuntimeError("x"))
        assert wait_for_events(30) == []
    # Airflow's provider asks of one that was skipped, too.
    listener.on_task_instance_success(TaskInstanceState.RUNNING, instance(dag, "announce"))
    assert wait_for_events(30) == []
    checked, published, skipped = read_events(file)
    assert [checked["eventType"], published["eventType"]] == ["FAIL", "FAIL"]
    assert checked["inputs"], "what it has checked is what is wrong"
    assert (published["inputs"], published["outputs"]) == ([], [])
    [declared] = skipped["outputs"]
    assert (skipped["inputs"], declared["facets"]) == ([], {}), "the provider names outlets, whatever became of them"


def test_a_dead_backend_holds_up_no_task(
    supervisor: Supervisor,
    new_listener: Callable[[Mapping[str, Any]], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It accepts connections, and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        listener = new_listener({"type": "http", "url": url, "timeout": 3, "retry": {"total": 0}})
        supervisor.results = results_of(Chain.publish())["features"]
        task_instance, own = instance(airflow_dags(MODEL)[f"{MODEL}_features"], "publish"), LineageListener()
        caplog.set_level(logging.WARNING)
        own.on_starting(component=TaskRunnerMarker())
        start = time.monotonic()
        listener.on_task_instance_running(None, task_instance)
        listener.on_task_instance_success(TaskInstanceState.RUNNING, task_instance)
        assert time.monotonic() - start < 1, "Airflow has its state by now"
        assert "abandoned" not in caplog.text
        monkeypatch.setattr(lineage, "PATIENCE_S", 0.2)
        own.before_stopping(component=object())
        assert "OpenLineage events were not sent" not in caplog.text, "no task ends"
        own.before_stopping(component=TaskRunnerMarker())
        assert "events were not sent within 0.2 s, and are lost: on_running, on_success" in caplog.text
        assert time.monotonic() - start < 2


def test_an_asset_is_the_dataset_that_is_published(home: Path) -> None:
    from airflow.providers.openlineage.utils.utils import translate_airflow_asset
    from airflow.sdk import Asset

    [uris] = get_provider_info()["asset-uris"]
    assert uris["schemes"] == ["evergreen"]
    asset = Asset(name="features", uri=f"evergreen://features/{MODEL}")
    dataset = translate_airflow_asset(asset, None)
    assert dataset, "Airflow knows the converter by the entry point"
    assert (dataset.namespace, dataset.name) == ("file", f"{home}/lake/features/{MODEL}")
    assert convert_asset(Asset(name="other", uri="s3://bucket/key"), None) is None
