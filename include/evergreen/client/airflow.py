"""Client of the parts of Airflow's REST API that a retrain needs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any, Literal
from urllib.parse import quote

import httpx

from evergreen.errors import EvergreenError
from evergreen.settings import SecretUrl

Json = dict[str, Any]

FINISHED_RUN_STATES = ("success", "failed")

ReprocessBehavior = Literal["failed", "completed"]
"""Which runs a backfill repeats besides creating missing ones: failed runs, or all finished runs."""

_PAGE = 100
_HEALTH_CHECK_INTERVAL_S = 10.0
_MAX_HEARTBEAT_AGE_S = 60.0
_RESTART_HINT = "`evergreen doctor` finds the cause; `make down` and then the same command restart it"
_RETRY_TIMEOUT_S = 60.0  # a busy SQLite delays responses; a dead server must be reported


class AirflowError(EvergreenError):
    """A request to Airflow failed."""


class AirflowConflictError(AirflowError):
    """The object to create exists already."""


class AirflowBusyError(AirflowError):
    """Airflow did not respond in time, so nobody knows whether it did what was requested."""


class AirflowClient:
    """Client of one Airflow deployment."""

    def __init__(self, url: SecretUrl, ui: str = "", timeout_s: float = _RETRY_TIMEOUT_S):
        """Connect to the Airflow at `url`, which has user and password unless every client is admin.

        A request that is safe to repeat is repeated for `timeout_s`.
        """
        login = httpx.URL(url.get_secret_value())
        self.url = str(url)
        self._ui = ui or self.url
        self._login = {"username": login.username, "password": login.password} if login.username else None
        self._timeout_s = timeout_s
        self._client = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)
        self._token = ""
        self._last_health_check = time.monotonic()

    def dag(self, dag_id: str) -> Json | None:
        """Return the details of a DAG; None until Airflow has parsed it."""
        details = self._request("GET", f"/api/v2/dags/{dag_id}", allow_missing=True)
        return None if details is None or details.get("is_stale") else details

    def import_errors(self) -> list[Json]:
        return self._list_all("/api/v2/importErrors", "import_errors")

    @staticmethod
    def describe_import_error(error: Json) -> str:
        """Return file and cause: of an invalid model folder its faults, else the last line of the traceback."""
        trace = error["stack_trace"].strip()
        faults, separator, _ = trace.partition("\n\nThe above exception was the direct cause")
        cause = (
            faults.partition(": ")[2] if separator and not faults.startswith("Traceback") else trace.splitlines()[-1]
        )
        return f"{error['filename']}: {cause}"

    def connection(self, connection_id: str) -> Json | None:
        """Return a connection of Airflow's database, without its password; None if there is no such one."""
        path = f"/api/v2/connections/{quote(connection_id, safe='')}"
        connection: Json | None = self._request("GET", path, allow_missing=True)
        return connection

    def paused_dags(self, tag: str) -> list[str]:
        """Return the ids of the paused DAGs with this tag."""
        dags = self._list_all("/api/v2/dags", "dags", paused=True, tags=tag)
        return sorted(dag["dag_id"] for dag in dags)

    def set_dag_paused(self, dag_id: str, paused: bool) -> None:
        self._request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": paused})

    def check_scheduler(self) -> None:
        """Raise AirflowError if the scheduler had no heartbeat for a minute; look at most once in ten seconds."""
        if time.monotonic() - self._last_health_check < _HEALTH_CHECK_INTERVAL_S:
            return
        self._last_health_check = time.monotonic()
        scheduler = self._request("GET", "/api/v2/monitor/health").get("scheduler") or {}
        heartbeat = scheduler.get("latest_scheduler_heartbeat")
        age = (datetime.now(UTC) - datetime.fromisoformat(heartbeat)).total_seconds() if heartbeat else 0.0
        if age > _MAX_HEARTBEAT_AGE_S:
            raise AirflowError(
                f"Airflow's scheduler has had no heartbeat for {age:.0f} s: see its log. {_RESTART_HINT}"
            )

    def task_ids(self, dag_id: str) -> list[str]:
        """Return the task IDs in topological order."""
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
        """Create runs for all logical dates from `start` to `end`, both included.

        The DAG is paused meanwhile. Airflow creates the runs one by one; on SQLite, a scheduler that starts the first
        ones locks out the creation of the next. Airflow then deletes them again, and the scheduler crashes.
        """
        self.set_dag_paused(dag_id, True)
        try:
            request = {"dag_id": dag_id, "reprocess_behavior": reprocess, "max_active_runs": max_active_runs}
            request |= {"from_date": start.isoformat(), "to_date": end.isoformat()}
            self._request("POST", "/api/v2/backfills", json=request)
        finally:
            self.set_dag_paused(dag_id, False)

    def unpause_backfill(self, backfill: Json) -> None:
        """Resume a backfill if it is paused."""
        if backfill["is_paused"]:
            self._request("PUT", f"/api/v2/backfills/{backfill['id']}/unpause")

    def dag_runs(self, dag_id: str, **filters: Any) -> list[Json]:
        return self._list_all(f"/api/v2/dags/{dag_id}/dagRuns", "dag_runs", **filters)

    def dag_run(self, dag_id: str, run_id: str) -> Json | None:
        return self._request("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", allow_missing=True)

    def trigger_dag_run(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> None:
        request = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        self._request("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=request)

    def clear_tasks(self, dag_id: str, run_id: str, *, only_failed: bool) -> None:
        """Clear all tasks of a run, or the failed ones and those downstream of them, so that they run again."""
        request = {"dry_run": False, "only_failed": only_failed}
        self._request("POST", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/clear", json=request)

    def task_instances(self, dag_id: str, run_id: str = "~", states: Sequence[str] = ()) -> list[Json]:
        """Return the task instances of a run, or of all runs."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        return self._list_all(path, "task_instances", **({"state": list(states)} if states else {}))

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """Return the return value of a task; None if it has none."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        entry = self._request("GET", path, allow_missing=True)
        return None if entry is None else entry["value"]

    def log(self, instance: Json) -> list[Json]:
        """Return the log entries of the last try of a task instance."""
        path = (
            f"/api/v2/dags/{instance['dag_id']}/dagRuns/{instance['dag_run_id']}"
            f"/taskInstances/{instance['task_id']}/logs/{instance['try_number']}"
        )
        log = self._request("GET", path, params={"full_content": True, "map_index": instance["map_index"]})
        return [entry if isinstance(entry, dict) else {"event": entry} for entry in log["content"]]

    def run_page_url(self, dag_id: str, run_id: str, task_id: str = "") -> str:
        """Return the URL of the page of a run, or of one of its tasks."""
        return f"{self._ui}/dags/{dag_id}/runs/{run_id}" + (f"/tasks/{task_id}" if task_id else "")

    def _list_all(self, path: str, key: str, **filters: Any) -> list[Json]:
        items: list[Json] = []
        while True:
            page = self._request("GET", path, params={**filters, "limit": _PAGE, "offset": len(items)})
            items += page[key]
            if not page[key] or len(items) >= page["total_entries"]:
                return items

    def _request(self, method: str, path: str, allow_missing: bool = False, **request: Any) -> Any:
        """Send a request and return the JSON response; requests that are safe to repeat are retried for a while."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                response = self._client.request(method, path, headers=self._headers(), **request)
                if response.status_code != 401 and response.status_code < 500:
                    break
                problem = f"status {response.status_code}"
                if response.status_code == 401:
                    self._token, problem = "", "session expired (401)"
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
                # Without a connection nothing was sent, so any request is safe to repeat.
                if method == "POST" and not isinstance(error, httpx.ConnectError):
                    text = f"Airflow at {self.url} did not respond to {method} {path}: {problem}"
                    raise AirflowBusyError(text) from None
            if time.monotonic() > deadline:
                raise AirflowError(
                    f"Airflow at {self.url} does not respond to {method} {path}: {problem}. {_RESTART_HINT}"
                )
            time.sleep(1)
        if response.status_code == 404 and allow_missing:
            return None
        if response.status_code == 409:
            raise AirflowConflictError(f"Airflow refused {method} {path}: {_detail(response)}")
        if response.is_error:
            raise AirflowError(f"Airflow refused {method} {path} with {response.status_code}: {_detail(response)}")
        return response.json() if response.content else None

    def _headers(self) -> dict[str, str]:
        if not self._token:
            response = self._client.request("POST" if self._login else "GET", "/auth/token", json=self._login)
            if response.status_code in (401, 403):
                raise AirflowError(
                    f"Airflow at {self.url}: authentication failed: {_detail(response)}. Set user and password in "
                    "EVERGREEN_AIRFLOW: http://user:password@host:port"
                )
            self._token = response.raise_for_status().json()["access_token"]
        return {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
