"""The pod of a job, against an API server that holds one pod and does what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from evergreen.orchestration.operators.pod import TrainerPod, delete_pods_of_run
from evergreen.orchestration.triggers import pod as triggers
from evergreen.orchestration.triggers.pod import TrainerPodTrigger, new_lines
from evergreen.settings import PodSettings
from evergreen.spec import loader
from evergreen.training import Job
from evergreen.training.backends import pod
from evergreen.training.outcome import Outcome, RetryableTrainingError

pytestmark = pytest.mark.dag

PODS = "/api/v1/namespaces/default/pods"
RUN = "slow.retrain a run"
STATE = {"job": "s3://bucket/jobs/job.json", "preemptions": 2}


@dataclass
class ApiServer:
    """One namespace with at most one pod in it. `failures` are the statuses of the next requests, by method."""

    url: str = ""
    pod: dict[str, Any] | None = None
    log: str = ""
    phase: str = "Succeeded"
    """what the pod that is created next is in"""
    created: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)
    failures_after: dict[str, list[int]] = field(default_factory=dict)
    log_queries: list[str] = field(default_factory=list)

    def respond(self, method: str, path: str, query: str, body: Any) -> tuple[int, Any]:
        if method == "GET" and path.endswith("/events"):
            return 200, {"items": []}
        if method == "GET" and path.endswith("/log"):
            self.log_queries.append(query)
            return 200, self.log
        if method == "POST" and self.pod is not None:
            return 409, {"message": "exists already"}
        if method == "POST":
            self.created.append(body)
            self.put(body, self.phase)
            return 201, self.pod
        if path == PODS:
            return 200, {"items": [self.pod] if self.pod else []}
        if self.pod is None:
            return 404, {"message": "not found"}
        if method == "DELETE":
            uid = self.pod["metadata"]["uid"]
            if body["preconditions"]["uid"] != uid:
                return 409, {"message": "another uid"}
            self.deleted.append(uid)
            self.pod = None
            return 200, {}
        return 200, self.pod

    def put(self, manifest: Mapping[str, Any], phase: str, exit_code: int = 0) -> str:
        """Let a pod of this manifest be there; return its uid."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        state: dict[str, Any] = {
            "Pending": {"waiting": {"reason": "ContainerCreating"}},
            "Running": {"running": {"startedAt": now}},
        }.get(phase, {"terminated": {"exitCode": exit_code, "reason": "Completed", "finishedAt": now}})
        container = {"name": "trainer", "image": "", "imageID": "", "ready": True, "restartCount": 0}
        self.pod = {
            **manifest,
            "metadata": {**manifest["metadata"], "uid": uuid.uuid4().hex, "creationTimestamp": now},
            "status": {"phase": phase, "containerStatuses": [{**container, "state": state}]},
        }
        return self.pod["metadata"]["uid"]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    found = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.partition("?")
            if before := found.failures.get(self.command):
                answer: tuple[int, Any] = before.pop(0), {"message": "injected"}
            else:
                answer = found.respond(self.command, path, query, json.loads(body or "null"))
                if after := found.failures_after.get(self.command):
                    answer = after.pop(0), {"message": "injected"}
            status, content = answer
            data = content.encode("latin-1") if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = handle_one

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kube_config = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "users": [{"name": "it", "user": {"token": "none"}}],
    }
    connection = {"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(kube_config)}}
    monkeypatch.setenv("AIRFLOW_CONN_STUB", json.dumps(connection))
    monkeypatch.setattr(triggers, "_POLL_S", 0.1)
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def manifest() -> dict[str, Any]:
    job = Job(
        model="flight_delay",
        fingerprint="f" * 64,
        training_data="s3://bucket/jobs/data.parquet",
        training_data_sha256="0" * 64,
        training_data_size=0,
        features=("a",),
        label="label",
        parameters={},
        seed=1,
        threads=2,
        gpu=0,
        processes=1,
        checkpoint_seconds=60,
        modules={},
        libraries={},
    )
    pods = PodSettings(image="trainer", secret="store", service_account="trainer", image_pull_secret="pull")
    return pod.pod_manifest(loader.load_spec("flight_delay"), job, "s3://bucket/jobs/job.json", RUN, pods)


def trainer_pod(manifest: Mapping[str, Any], *, deferrable: bool = False, startup: float = 1) -> TrainerPod:
    pods = PodSettings(image="trainer", connection="stub", deferrable=deferrable, startup_timeout_minutes=startup)
    return TrainerPod(manifest=manifest, pods=pods, timeout=timedelta(hours=1), state=STATE)


def test_attempt_creates_the_manifest_and_deletes_the_pod(api: ApiServer, manifest: dict[str, Any]) -> None:
    assert trainer_pod(manifest).attempt().outcome is Outcome.SUCCEEDED
    assert api.created == [manifest]
    assert len(api.deleted) == 1


def test_attempt_adopts_the_pod_of_an_unanswered_request(api: ApiServer, manifest: dict[str, Any]) -> None:
    api.failures_after["POST"] = [504]
    assert trainer_pod(manifest).attempt().outcome is Outcome.SUCCEEDED
    assert len(api.created) == 1


def test_attempt_survives_a_busy_api_server(api: ApiServer, manifest: dict[str, Any]) -> None:
    api.failures = {"GET": [503, 429], "POST": [500]}
    assert trainer_pod(manifest).attempt().outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_attempt_reports_a_missing_right(api: ApiServer, manifest: dict[str, Any], method: str) -> None:
    api.put(manifest, "Failed", exit_code=1)  # to be replaced
    api.failures[method] = [403]
    ended = trainer_pod(manifest).attempt()
    assert ended.outcome is Outcome.BAD_CONFIG
    assert "forbids it: injected" in ended.message


def test_attempt_defers_with_the_pod_in_the_trigger(api: ApiServer, manifest: dict[str, Any]) -> None:
    api.phase = "Running"
    with pytest.raises(TaskDeferred) as deferred:
        trainer_pod(manifest, deferrable=True).attempt()
    assert api.pod is not None
    assert deferred.value.timeout == timedelta(hours=1)
    assert deferred.value.trigger.uid == api.pod["metadata"]["uid"]

    # Not over yet: the API server was away for so long that the trigger gave up.
    event = {"uid": deferred.value.trigger.uid, "log_position": "2026", "problem": "", "state": STATE}
    with pytest.raises(TaskDeferred) as again:
        trainer_pod(manifest, deferrable=True).attempt(event)
    assert again.value.trigger.log_position == "2026"

    ended = trainer_pod(manifest, deferrable=True).attempt({**event, "problem": "no right to watch"})
    assert ended.outcome is Outcome.UNKNOWN
    assert ended.message.endswith("no right to watch")
    assert api.pod is None


def test_attempt_takes_no_other_pod_for_its_own(api: ApiServer, manifest: dict[str, Any]) -> None:
    api.put(manifest, "Running")
    event = {"uid": "of the one before", "log_position": "", "problem": "", "state": STATE}
    assert trainer_pod(manifest).attempt(event).outcome is Outcome.PREEMPTED
    assert api.deleted == []


def test_attempt_ends_a_pod_that_does_not_begin(api: ApiServer, manifest: dict[str, Any]) -> None:
    api.phase = "Pending"
    ended = trainer_pod(manifest, startup=0.02).attempt()
    assert ended.outcome is Outcome.UNKNOWN
    assert "it did not start in time" in ended.message
    assert api.pod is None


@pytest.mark.parametrize("phase", ["Pending", "Running"])
def test_on_kill_deletes_the_pod_and_fails_the_task(api: ApiServer, manifest: dict[str, Any], phase: str) -> None:
    api.phase = phase
    own = trainer_pod(manifest)
    threading.Timer(0.5, own.on_kill).start()
    with pytest.raises(RetryableTrainingError, match="ended from outside"):
        own.attempt()
    assert len(api.deleted) == 1


def test_on_kill_before_the_pod_is_created(api: ApiServer, manifest: dict[str, Any]) -> None:
    own = trainer_pod(manifest)
    own.on_kill()
    with pytest.raises(RetryableTrainingError, match="ended from outside"):
        own.attempt()
    assert api.created == []


def test_delete_pods_of_run(api: ApiServer, manifest: dict[str, Any]) -> None:
    uid = api.put(manifest, "Running")
    delete_pods_of_run(RUN, PodSettings(connection="stub"))
    assert api.deleted == [uid]


def trigger(manifest: Mapping[str, Any], uid: str, **options: Any) -> TrainerPodTrigger:
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    values = {"startup_seconds": 60, "logging_seconds": 0, "connection": "stub", "state": STATE, **options}
    return TrainerPodTrigger(name=name, namespace=namespace, uid=uid, **values)


async def first_event(of: TrainerPodTrigger) -> Any:
    async for event in of.run():
        return event.payload


def test_trigger_is_made_again_from_what_it_serializes(manifest: dict[str, Any]) -> None:
    path, arguments = trigger(manifest, "uid", in_cluster=True, log_position="2026").serialize()
    module, _, name = path.rpartition(".")
    again = getattr(import_module(module), name)(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)


def test_trigger_shows_each_line_once(
    api: ApiServer, manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    uid = api.put(manifest, "Running")
    api.log = "2026-01-01T00:00:01.5Z first\n2026-01-01T00:00:01.5Z second\n2026-01-01T00:00:02Z thi"

    def end() -> None:
        api.log += "rd\n2026-01-01T00:00:03Z unfinished\xff"
        time.sleep(0.5)
        api.put(manifest, "Failed", exit_code=1)
        assert api.pod is not None
        api.pod["metadata"]["uid"] = uid

    threading.Timer(0.5, end).start()
    event = asyncio.run(first_event(trigger(manifest, uid)))
    assert event == {"uid": uid, "log_position": "2026-01-01T00:00:03Z", "problem": "", "state": STATE}
    lines = re.findall(r"\[trainer\] (\S*)", capsys.readouterr().out)
    assert lines == ["first", "second", "third", r"unfinished\xff"]
    assert "sinceSeconds" not in api.log_queries[0]
    assert all("sinceSeconds=1" in query for query in api.log_queries[1:])  # 12 or so


def test_trigger_fires_when_it_may_not_watch(api: ApiServer, manifest: dict[str, Any]) -> None:
    uid = api.put(manifest, "Running")
    api.failures["GET"] = [500, 403]
    assert asyncio.run(first_event(trigger(manifest, uid)))["problem"] == "403 Forbidden"


@pytest.mark.parametrize("other", [None, "another"])
def test_trigger_fires_when_its_pod_is_gone(api: ApiServer, manifest: dict[str, Any], other: str | None) -> None:
    if other:
        api.put(manifest, "Running")
    assert asyncio.run(first_event(trigger(manifest, "gone")))["problem"] == ""


def test_on_kill_of_the_trigger_deletes_only_its_pod(api: ApiServer, manifest: dict[str, Any]) -> None:
    uid = api.put(manifest, "Running")
    asyncio.run(trigger(manifest, "of the one before").on_kill())
    assert api.deleted == []
    asyncio.run(trigger(manifest, uid).on_kill())
    assert api.deleted == [uid]
    asyncio.run(trigger(manifest, uid).on_kill())


@pytest.mark.parametrize(
    ("text", "position", "complete", "lines", "after"),
    [
        ("", "", False, [], ""),
        ("", "t1", True, [], "t1"),
        ("t1 a\nt2 b\n", "", False, ["a", "b"], "t2"),
        ("t1 a\nt2 b\n", "t1", False, ["b"], "t2"),
        ("t1 a\nt1 b\nt2 c\n", "t1", False, ["c"], "t2"),
        ("t1 a\nt2 b\n", "t2", False, [], "t2"),
        ("t5 a\nt6 b\n", "t2", False, ["a", "b"], "t6"),  # rotated
        ("t1 a\nt2 b", "t1", False, [], "t1"),
        ("t1 a\nt2 b", "t1", True, ["b"], "t2"),
        ("t1 \nt2 10%\r20%\r\n", "", False, ["", "10%\r20%"], "t2"),
    ],
)
def test_new_lines(text: str, position: str, complete: bool, lines: list[str], after: str) -> None:
    assert new_lines(text, position, complete=complete) == (lines, after)
