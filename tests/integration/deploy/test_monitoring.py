"""The files of deploy/monitoring, by Prometheus' own programs: it scrapes real metrics, and answers every panel."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi import FastAPI

from evergreen import ledger, storage
from evergreen.plugin import metrics
from evergreen.settings import REPOSITORY, settings
from evergreen.training.attempt import Attempt, ResourceAllocation
from evergreen.training.outcome import Outcome
from evergreen.training.recent_attempts import register_job
from support import tills
from support.ledger_events import look_event, promotion, registration, verdict_event
from support.waiting import eventually

pytestmark = pytest.mark.integration

FOLDER = REPOSITORY / "deploy/monitoring"
TOKEN = "token-of-this-test"
PRICES = """
currency = "EUR"
[on_demand]
cpu_hour = 1
memory_gib_hour = 1
[spot]
cpu_hour = 1
memory_gib_hour = 1
"""


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus prometheus-alertmanager")
    return path


def run(*command: str | Path, **options: Any) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_rules_are_valid_and_alert_when_they_should() -> None:
    run(program("promtool"), "check", "rules", FOLDER / "rules.yaml")
    run(program("promtool"), "test", "rules", "rules_test.yaml", cwd=FOLDER)


def test_configurations_are_valid() -> None:
    # The token is written when the container starts.
    run(program("promtool"), "check", "config", "--syntax-only", FOLDER / "prometheus.yaml")
    run(program("amtool"), "check-config", FOLDER / "alertmanager.yaml")


@pytest.fixture
def model(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that has something to show in every panel."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "prices.toml").write_text(PRICES)
    monkeypatch.setenv("EVERGREEN_METRICS_TOKEN", str(tmp_path / "token"))
    monkeypatch.setenv("EVERGREEN_PRICES", str(tmp_path / "prices.toml"))
    settings.cache_clear()
    metrics._registry.cache_clear()
    folder = tills.write_model(tmp_path, monkeypatch, use_models)
    gate = 'dict(kind="against_champion", metric="rmse", must_be="better", name="auc_against_champion")'
    tills.change_spec(folder, 'holdout="2d",', 'holdout="14d", fresh_within="1w",')
    tills.change_spec(folder, "gates=[", f"gates=[{gate}, ")
    tills.change_spec(folder, 'spine="receipts",', 'spine="receipts", fresh_within="1d",')
    tills.deliver(3)
    tills.publish(tills.reload_spec(), tills.days(3)[::2])
    events = [verdict_event(10), registration("1", 1), promotion("1", 10, 1)]
    for event in [*events, look_event(verdict_event(30, "1"), "inconclusive")]:
        ledger.append_decision("tills", "ada", lambda _, event=event: event)
    job, now = storage.storage_path(settings().jobs) / "tills" / ("a" * 64), datetime.now(UTC)
    register_job(job, now)
    started = now - timedelta(hours=1)
    Attempt(
        id="one",
        dag_run="",
        model="tills",
        team="tests",
        allocation=ResourceAllocation(cpu=1, memory_gib=1),
        started_at=started,
        last_heartbeat=now,
        ended_at=now,
        outcome=Outcome.SUCCEEDED,
    ).write(job / "attempts" / "one.json")


@pytest.fixture
def server(model: None) -> Iterator[str]:
    """The route on a real server; yields its host and port."""
    app, routes, port = FastAPI(), FastAPI(), free_port()
    metrics.add_metrics_route(routes)
    app.mount("/evergreen", routes)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually("the server has started", lambda: server.started)
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def prometheus(server: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A Prometheus with the configuration of the compose stack, but for addresses and intervals."""
    binary, port = program("prometheus"), free_port()
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": [server]}]
    job["authorization"] = {"credentials_file": str(tmp_path / "token")}
    del config["alerting"]
    folder = tmp_path / "prometheus"
    folder.mkdir()
    shutil.copy(FOLDER / "rules.yaml", folder)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder}/prometheus.yaml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

                def has_recorded() -> bool:
                    try:
                        answer = client.get("/api/v1/query", params={"query": "evergreen:features_lateness_seconds"})
                        return bool(answer.json()["data"]["result"])
                    except (httpx.HTTPError, ValueError):
                        assert process.poll() is None, (folder / "log").read_text()
                        return False

                eventually("the rules are recorded", has_recorded)
                yield client
        finally:
            process.terminate()
            process.wait()


def test_metrics_follow_the_conventions_of_prometheus(server: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    page = httpx.get(f"http://{server}/evergreen/metrics", headers=headers, trust_env=False)
    assert page.status_code == 200
    run(program("promtool"), "check", "metrics", input=page.text)


def test_prometheus_scrapes_and_answers_every_panel(prometheus: httpx.Client) -> None:
    [target] = prometheus.get("/api/v1/targets").json()["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    dashboard = json.loads((FOLDER / "dashboards/evergreen.json").read_text())
    for panel in dashboard["panels"]:
        for query in panel["targets"]:
            expression = query["expr"].replace("$model", ".*").replace("$team", ".*")
            answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
            assert answer["status"] == "success", f"{panel['title']}: {answer}"
            assert answer["data"]["result"], f"{panel['title']} shows nothing: {expression}"
    assert dashboard["panels"]


def test_what_is_late_is_an_alert_without_any_run(prometheus: httpx.Client) -> None:
    def find_alerts() -> set[tuple[str, str]]:
        answer = prometheus.get("/api/v1/query", params={"query": 'ALERTS{alertname=~"Evergreen.*Late"}'}).json()
        return {(series["metric"]["alertname"], series["metric"]["model"]) for series in answer["data"]["result"]}

    eventually("both alerts fire", lambda: len(find_alerts()) == 2)
    assert find_alerts() == {("EvergreenChampionLate", "tills"), ("EvergreenFeaturesLate", "tills")}
