"""The stack as its users meet it: what it lets in, what it keeps, and what it says when something is wrong."""

from __future__ import annotations

import re
import socket
from typing import Any

import httpx
import pytest

from compose.conftest import STATE, LiveStack, outward_address
from evergreen.client.airflow import AirflowClient, AirflowError
from evergreen.settings import SecretUrl
from measuring.compose import PORTS, SERVICES, DockerError, docker

pytestmark = pytest.mark.compose

MEASURED_AGAIN = ("monitoring/", "performance/", "serving/", "estimates/", "labelled_answers/")
"""Datasets whose partitions say something else once more labels and logs are known."""

ONLINE = """
import json
from google.protobuf.timestamp_pb2 import Timestamp
from evergreen.settings import settings
from evergreen.feature_store.online_backends import connect_redis

with connect_redis(settings().online_store.get_secret_value()) as server:
    keys = [key for key in server.scan_iter() if key != b"_evergreen"]
    rows = {key.hex(): server.hgetall(key) for key in keys}
values = {key: sorted(map(repr, row.items())) for key, row in rows.items()}
times = {
    key: max(Timestamp.FromString(value).seconds for field, value in row.items() if field.startswith(b"_ts:"))
    for key, row in rows.items()
}
print(json.dumps({"values": values, "times": times}))
"""

STORE_DOORS = """
import json, socket
import boto3, grpc, httpx
from botocore.exceptions import ClientError

told = {"anonymous": httpx.get("http://s3:8333/evergreen", trust_env=False).status_code}
try:
    boto3.client("s3", aws_secret_access_key="wrong", aws_access_key_id="evergreen").list_buckets()
except ClientError as error:
    told["wrong key"] = error.response["ResponseMetadata"]["HTTPStatusCode"]
try:  # to add a user, which SeaweedFS does for everybody if it has no key
    put = grpc.insecure_channel("s3:18333").unary_unary("/messaging_pb.SeaweedS3IamCache/PutIdentity")
    told["as an administrator"] = str(put(b"\\x0a\\x07\\x0a\\x05other", timeout=10))
except grpc.RpcError as error:
    told["as an administrator"] = error.code().name
for port in (9333, 19333, 8888, 18888, 8080, 18080, 8181, 9101):
    try:
        socket.create_connection(("s3", port), timeout=5).close()
        told[port] = "open"
    except ConnectionRefusedError:
        told[port] = "refused"
print(json.dumps(told))
"""

RACE = """
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from threading import Barrier

from evergreen.ledger import BacktestRecorded
from evergreen.ledger.journal import Journal, LedgerConflictError
from evergreen.settings import settings

WRITERS, ROUNDS = 16, 10
together = Barrier(WRITERS)

def write(writer):
    journal = Journal("race", settings().ledger)  # with a client of its own
    written = []
    for turn in range(ROUNDS):
        together.wait()
        while True:
            event = BacktestRecorded(
                as_of="2013-01-01", candidate_fingerprint=f"{writer}-{turn}", report="none"
            )
            try:
                written.append(journal.append(journal.read(), f"writer {writer}", event).number)
                break
            except LedgerConflictError:
                pass
    return written

with ThreadPoolExecutor(WRITERS) as pool:
    written = [number for numbers in pool.map(write, range(WRITERS)) for number in numbers]
entries = Journal("race", settings().ledger).read().entries
stored = sorted(entry.event.candidate_fingerprint for entry in entries)
print(json.dumps({"written": sorted(written), "stored": stored}))
"""


def champions(stack: LiveStack) -> str:
    return stack.does("history", "flight_delay")


def test_its_pages_are_on_loopback_only(stack: LiveStack) -> None:
    for port in map(stack.port, PORTS):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(OSError, match="refused|timed out"):
            socket.create_connection((outward_address(), port), timeout=5)


def test_one_login_and_no_other(stack: LiveStack) -> None:
    address = f"localhost:{stack.port('AIRFLOW_PORT')}"
    assert stack.airflow().dag_runs("flight_delay.retrain")
    with pytest.raises(AirflowError, match="authentication failed"):
        AirflowClient(SecretUrl(f"http://admin:wrong@{address}")).dag_runs("flight_delay.retrain")
    assert httpx.get(f"http://{address}/auth/token", trust_env=False).status_code in (401, 403, 405)


def test_nobody_is_root_who_need_not_be_and_nobody_may_become_it(stack: LiveStack) -> None:
    for service in ("mlflow", "spark", "api-server", "scheduler", "dag-processor", "triggerer"):
        status = docker("exec", stack.container(service), "cat", "/proc/1/status")
        of = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert of["Uid"].split()[0] == "10001", service
        assert int(of["CapEff"], 16) == int(of["CapPrm"], 16) == 0, service
        assert of["NoNewPrivs"].strip() == "1", service


def test_no_secret_is_on_a_command_line_or_in_a_log(stack: LiveStack) -> None:
    secrets = set(stack.secrets().values())
    for service in SERVICES:
        container = stack.container(service)
        lines = docker("top", container, "args") + docker("logs", container)
        assert not [secret for secret in secrets if secret in lines], service


def test_the_store_lets_in_who_has_the_key_and_through_no_other_door(stack: LiveStack) -> None:
    told = stack.python(STORE_DOORS)
    assert told.pop("anonymous") == told.pop("wrong key") == 403
    assert told.pop("as an administrator") == "UNAUTHENTICATED"
    assert set(told.values()) == {"refused"}, told


def test_the_doctor_is_content(stack: LiveStack) -> None:
    assert "checks passed" in stack.does("doctor")


def test_up_again_starts_nothing_anew(stack: LiveStack) -> None:
    before = {service: stack.container(service) for service in SERVICES}
    stack.does("up")
    assert {service: stack.container(service) for service in SERVICES} == before


def test_down_and_up_again_loses_nothing(stack: LiveStack) -> None:
    history, held = champions(stack), stack.python(ONLINE)
    runs = [run["dag_run_id"] for run in stack.airflow().dag_runs("flight_delay.retrain")]
    stack.does("down")
    assert docker("ps", "--quiet", "--filter", "label=com.docker.compose.project=evergreen") == ""
    stack.does("up")
    assert champions(stack) == history
    assert stack.python(ONLINE) == held
    assert [run["dag_run_id"] for run in stack.airflow().dag_runs("flight_delay.retrain")] == runs


def test_an_online_store_that_was_emptied_is_rebuilt_by_one_command(stack: LiveStack) -> None:
    held = stack.python(ONLINE)
    docker("exec", stack.container("redis"), "redis-cli", "flushall")
    assert stack.python(ONLINE)["values"] == {}
    stack.does("online", "rebuild")
    again = stack.python(ONLINE)
    oldest = min(again["times"].values())
    # What is older than the views' TTL is served to nobody, and is not there again.
    assert again["values"] == {key: held["values"][key] for key, at in held["times"].items() if at >= oldest}


def test_sixteen_who_write_to_the_ledger_at_once_lose_nothing(stack: LiveStack) -> None:
    told = stack.python(RACE)
    assert told["written"] == list(range(1, 161))
    assert told["stored"] == sorted(f"{writer}-{turn}" for writer in range(16) for turn in range(10))


def test_a_rollback_is_followed_by_the_registry(stack: LiveStack) -> None:
    said = stack.does("rollback", "flight_delay", "--reason", "a test")
    assert "is champion again" in said
    assert "rolled back" in champions(stack)
    assert stack.python(STATE.read_text())["aliases"] == "right"


@pytest.mark.parametrize(
    ("variable", "database"),
    [
        ("AIRFLOW_DB_PASSWORD", "Airflow's database"),
        ("MLFLOW_DB_PASSWORD", "MLflow's database"),
        ("FEAST_DB_PASSWORD", "Feast's database"),
        ("REDIS_PASSWORD", "online store"),
    ],
)
def test_a_wrong_password_is_told_of_before_anything_starts(
    stack: LiveStack, monkeypatch: pytest.MonkeyPatch, variable: str, database: str
) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(DockerError) as told:
        docker("compose", "run", "--rm", "--no-deps", "-T", "migrate")
    assert "nothing was migrated" in str(told.value)
    assert database in str(told.value)
    assert "authentication failed" in str(told.value)
    assert "wrong" not in str(told.value).replace("wrong password", "")


@pytest.mark.parametrize("task", ["build", "train", "register"])
def test_refused_retrain_resumes_once_the_store_accepts(stack: LiveStack, task: str) -> None:
    before = stack.python(STATE.read_text())
    code, said = stack.retrain_during(stack.read_only_store(), task)
    assert code, said
    assert "AccessDenied" in said or "Forbidden" in said
    went_on(stack, before)


def went_on(stack: LiveStack, before: Any) -> None:
    """Asked for again, the retrain ends, and has lost nothing and promoted nothing twice."""
    stack.does("retrain", "flight_delay")
    after = stack.python(STATE.read_text())
    assert before["contents"].keys() <= after["contents"].keys()
    kept = {name: files for name, files in before["contents"].items() if not name.startswith(MEASURED_AGAIN)}
    assert {name: after["contents"].get(name) for name in kept} == kept
    assert len(after["verdicts"]) == len(before["verdicts"]) + 1
    assert after["aliases"] == "right"
    assert len(set(after["promoted"])) == len(after["promoted"])


def test_a_server_that_is_not_there_is_told_of(stack: LiveStack) -> None:
    container = stack.container("redis")
    docker("stop", container)
    try:
        code, said = stack.says("doctor")
    finally:
        docker("start", container)
    assert code == 1
    assert re.search(r"online store, redis://redis:6379/0: does not respond.* → start it", said)
    assert said.count(" → ") == 1
