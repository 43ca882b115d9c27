"""Airflow as its REST API shows it: the few questions and orders that a retrain needs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import httpx

from evergreen.errors import EvergreenError
from evergreen.settings import redact_url

Json = dict[str, Any]

FINISHED_RUN_STATES = ("success", "failed")

ReprocessBehavior = Literal["failed", "completed"]
"""Which runs a backfill makes again, besides making missing ones: those that failed, or all that are over."""

_PAGE = 100
_HEALTH_CHECK_INTERVAL_S = 10.0  # seconds between two looks at the scheduler's health
_MAX_HEARTBEAT_AGE_S = 60.0
_RESTART_HINT = "`evergreen doctor` looks for the reason; `make down` and then the same command starts it anew"
_RETRY_TIMEOUT_S = 60.0  # a busy SQLite may keep an answer waiting; a dead server must not be waited for


class AirflowError(EvergreenError):
    """Airflow did not do what it was asked."""


class AirflowClient:
    """A client of one Airflow."""

    def __init__(self, url: str, ui: str = ""):
        """Args:
        url: with user and password, unless whoever reaches it is admin.
        ui: where people see it, if not there.
        """
        parts = urlsplit(url)
        self.url = redact_url(url)
        self._ui = ui or self.url
        self._login = {"username": unquote(parts.username or ""), "password": unquote(parts.password or "")}
        self._client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self._token = ""
        self._last_health_check = time.monotonic()

    def dag(self, dag_id: str) -> Json | None:
        """What Airflow knows of a DAG; None while it has not parsed it."""
        found = self._request("GET", f"/api/v2/dags/{dag_id}", allow_missing=True)
        return None if found is None or found.get("is_stale") else found

    def import_errors(self) -> list[Json]:
        return self._list_all("/api/v2/importErrors", "import_errors")

    def set_dag_paused(self, dag_id: str, paused: bool) -> None:
        self._request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": paused})

    def check_scheduler(self) -> None:
        """Raises:
        AirflowError: the scheduler has been silent for a minute; nothing will ever run.
        """
        if time.monotonic() - self._last_health_check < _HEALTH_CHECK_INTERVAL_S:
            return
        self._last_health_check = time.monotonic()
        scheduler = self._request("GET", "/api/v2/monitor/health").get("scheduler") or {}
        beat = scheduler.get("latest_scheduler_heartbeat")
        silent = (datetime.now(UTC) - datetime.fromisoformat(beat)).total_seconds() if beat else 0.0
        if silent > _MAX_HEARTBEAT_AGE_S:
            raise AirflowError(
                f"Airflow's scheduler has given no sign of life for {silent:.0f} s: its log tells why, {_RESTART_HINT}"
            )

    def task_ids(self, dag_id: str) -> list[str]:
        """Names of the tasks, each after those it waits for."""
        tasks = self._request("GET", f"/api/v2/dags/{dag_id}/tasks")["tasks"]
        graph: TopologicalSorter[str] = TopologicalSorter()
        for task in tasks:
            graph.add(task["task_id"])
            for downstream in task["downstream_task_ids"]:
                graph.add(downstream, task["task_id"])
        return list(graph.static_order())

    def active_backfill(self, dag_id: str) -> Json | None:
        backfills = self._list_all("/api/v2/backfills", "backfills", dag_id=dag_id)
        return next((backfill for backfill in backfills if not backfill["completed_at"]), None)

    def create_backfill(
        self, dag_id: str, start: datetime, end: datetime, reprocess: ReprocessBehavior, max_active_runs: int
    ) -> None:
        """Create the runs whose logical dates lie in `start` – `end`, both included.

        Airflow creates them one by one. On SQLite a scheduler that takes up the first ones meanwhile locks
        out the next: Airflow then removes what it has made, and the scheduler, which holds some of it, dies.
        So the DAG rests for that moment, and what is locked out all the same is asked for again.
        """
        self.set_dag_paused(dag_id, True)
        try:
            self._request(
                "POST",
                "/api/v2/backfills",
                json={
                    "dag_id": dag_id,
                    "from_date": start.isoformat(),
                    "to_date": end.isoformat(),
                    "reprocess_behavior": reprocess,
                    "max_active_runs": max_active_runs,
                },
            )
        finally:
            self.set_dag_paused(dag_id, False)

    def unpause_backfill(self, backfill: Json) -> None:
        """Let a backfill that somebody has paused go on."""
        if backfill["is_paused"]:
            self._request("PUT", f"/api/v2/backfills/{backfill['id']}/unpause")

    def dag_runs(self, dag_id: str, **filters: Any) -> list[Json]:
        return self._list_all(f"/api/v2/dags/{dag_id}/dagRuns", "dag_runs", **filters)

    def dag_run(self, dag_id: str, run_id: str) -> Json | None:
        return self._request("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", allow_missing=True)

    def trigger_dag_run(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> None:
        self._request(
            "POST",
            f"/api/v2/dags/{dag_id}/dagRuns",
            json={"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)},
        )

    def clear_failed_tasks(self, dag_id: str, run_id: str) -> None:
        """Run again what failed in a run, and what comes after it."""
        self._request(
            "POST",
            f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/clear",
            json={"dry_run": False, "only_failed": True},
        )

    def task_instances(self, dag_id: str, run_id: str = "~", states: Sequence[str] = ()) -> list[Json]:
        """Task instances of a run, or of all runs."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        return self._list_all(path, "task_instances", **({"state": list(states)} if states else {}))

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """What a task has returned."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        return self._request("GET", path)["value"]

    def log(self, instance: Json) -> list[Json]:
        """The entries of the log of a task instance's last try."""
        path = (
            f"/api/v2/dags/{instance['dag_id']}/dagRuns/{instance['dag_run_id']}"
            f"/taskInstances/{instance['task_id']}/logs/{instance['try_number']}"
        )
        content = self._request("GET", path, params={"full_content": True, "map_index": instance["map_index"]})[
            "content"
        ]
        return [entry if isinstance(entry, dict) else {"event": entry} for entry in content]

    def run_page_url(self, dag_id: str, run_id: str, task_id: str = "") -> str:
        """Where a person sees a run, or one of its tasks."""
        return f"{self._ui}/dags/{dag_id}/runs/{run_id}" + (f"/tasks/{task_id}" if task_id else "")

    def _list_all(self, path: str, key: str, **filters: Any) -> list[Json]:
        found: list[Json] = []
        while True:
            page = self._request("GET", path, params={**filters, "limit": _PAGE, "offset": len(found)})
            found += page[key]
            if not page[key] or len(found) >= page["total_entries"]:
                return found

    def _request(self, method: str, path: str, allow_missing: bool = False, **request: Any) -> Any:
        """Ask; a question (not an order) that gets no answer is asked again for a minute."""
        deadline = time.monotonic() + _RETRY_TIMEOUT_S
        while True:
            problem = ""
            try:
                answer = self._client.request(method, path, headers=self._headers(), **request)
                if answer.status_code == 401:
                    self._token = ""
                    problem = "it does not know us any more"
                elif answer.status_code >= 500:
                    problem = f"it answers {answer.status_code}"
            except httpx.ConnectError as error:
                problem = str(error)  # nothing was sent: orders, too, may be given again
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
                if method == "POST":
                    raise AirflowError(f"Airflow at {self.url} did not answer {method} {path}: {problem}") from None
            if not problem:
                break
            if time.monotonic() > deadline:
                raise AirflowError(f"Airflow at {self.url} does not answer {method} {path}: {problem}. {_RESTART_HINT}")
            time.sleep(1)
        if answer.status_code == 404 and allow_missing:
            return None
        if answer.status_code == 409:
            raise AirflowConflictError(f"Airflow refused {method} {path}: {_detail(answer)}")
        if answer.is_error:
            raise AirflowError(f"Airflow refused {method} {path} with {answer.status_code}: {_detail(answer)}")
        return answer.json() if answer.content else None

    def _headers(self) -> dict[str, str]:
        if not self._token:
            if self._login["username"]:
                answer = self._client.post("/auth/token", json=self._login)
            else:
                answer = self._client.get("/auth/token")
            if answer.status_code in (401, 403):
                raise AirflowError(
                    f"Airflow at {self.url} does not let us in: {_detail(answer)}. EVERGREEN_AIRFLOW has the user and "
                    "the password, as http://user:password@host:port"
                )
            self._token = answer.raise_for_status().json()["access_token"]
        return {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}


class AirflowConflictError(AirflowError):
    """What was to be made is there already."""


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500]
