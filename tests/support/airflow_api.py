"""The part of Airflow's REST API that backfills need, in memory: its database may be too busy for a while."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import httpx

from evergreen.client.airflow import AirflowClient
from evergreen.periods import Calendar
from evergreen.settings import SecretUrl

Reply = str
"""What becomes of a request for a backfill.

- `created`: with a run per period, each of which succeeds when it is looked at
- `locked`: nothing but an error, because the database was locked
- `half`: an error; the backfill without runs is there until it was looked at twice, then Airflow deletes it
- `timeout`: no response, and the backfill is created all the same
- `short`: without a run for the last period
- `failing`: with runs that fail
"""


class SimulatedAirflow:
    """One features DAG. `replies` are what becomes of the first requests for a backfill; later ones are `created`."""

    def __init__(self, calendar: Calendar, publish: Callable[[list[str]], None], replies: Iterable[Reply] = ()):
        self.calendar, self.publish = calendar, publish
        self.replies = list(replies)
        self.requests: list[tuple[str, str]] = []
        self.is_paused = True
        self.runs: dict[str, dict[str, Any]] = {}
        self._backfill: dict[str, Any] | None = None
        self._remaining_looks = 0

    def client(self) -> AirflowClient:
        client = AirflowClient(SecretUrl("http://airflow"))
        client._client = httpx.Client(transport=httpx.MockTransport(self._respond), base_url="http://airflow")
        return client

    @property
    def creations(self) -> int:
        return sum(request == ("POST", "/api/v2/backfills") for request in self.requests)

    def _respond(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.requests.append((request.method, path))
        match request.method, path.removeprefix("/api/v2/").split("/"):
            case "GET", ["", "auth", "token"]:
                body: Any = {"access_token": "token"}
            case "GET", ["dags", _]:
                body = {"is_stale": False, "is_paused": self.is_paused}
            case "PATCH", ["dags", _]:
                self.is_paused = json.loads(request.content)["is_paused"]
                body = {}
            case "GET", ["backfills"]:
                body = self._page("backfills", self._active_backfills())
            case "POST", ["backfills"]:
                return self._create(json.loads(request.content))
            case "GET", ["dags", _, "dagRuns"]:
                body = self._page("dag_runs", self._look_at_runs(request))
            case "GET", ["dags", _, "dagRuns", "~", "taskInstances"]:
                body = self._page("task_instances", [])
            case "GET", ["dags", _, "dagRuns", _, "taskInstances"]:
                body = self._page("task_instances", [])
            case _:
                raise AssertionError(f"{request.method} {path}")
        return httpx.Response(200, json=body)

    @staticmethod
    def _page(key: str, items: list[Any]) -> dict[str, Any]:
        return {key: items, "total_entries": len(items)}

    def _active_backfills(self) -> list[dict[str, Any]]:
        if self._backfill is None:
            return []
        self._remaining_looks -= 1
        if self._remaining_looks < 0:
            self._backfill = None
            return []
        return [self._backfill]

    def _create(self, body: dict[str, Any]) -> httpx.Response:
        if self._backfill:
            return httpx.Response(409, json={"detail": "There is another running backfill"})
        reply = self.replies.pop(0) if self.replies else "created"
        if reply == "locked":
            return httpx.Response(500, json={"detail": "database is locked"})
        self._backfill = {"id": 1, "is_paused": False, "completed_at": None, **body}
        self._remaining_looks = 2
        if reply == "half":
            return httpx.Response(500, json={"detail": "database is locked"})
        bounds = (self.calendar.period_at(datetime.fromisoformat(body[end])) for end in ("from_date", "to_date"))
        first, last = bounds
        periods = list(self.calendar.periods_between(first, self.calendar.shift(last, 1)))
        for period in periods[: -1 if reply == "short" else None]:
            start = self.calendar.start(period)
            self.runs[period] = {
                "dag_id": body["dag_id"],
                "dag_run_id": f"backfill__{period}",
                "state": "failed" if reply == "failing" else "queued",
                "data_interval_start": start.isoformat(),
                "data_interval_end": self.calendar.end(period).isoformat(),
            }
        if reply == "timeout":
            raise httpx.ReadTimeout("timed out")
        return httpx.Response(200, json=self._backfill)

    def _look_at_runs(self, request: httpx.Request) -> list[dict[str, Any]]:
        queued = [period for period, run in self.runs.items() if run["state"] == "queued"]
        if queued:
            self.publish(queued)
        for period in queued:
            self.runs[period]["state"] = "success"
        bounds = (request.url.params.get(f"logical_date_{end}") for end in ("gte", "lte"))
        first, last = (datetime.fromisoformat(bound) if bound else None for bound in bounds)
        return [
            run
            for run in self.runs.values()
            if (first is None or datetime.fromisoformat(run["data_interval_start"]) >= first - timedelta(0))
            and (last is None or datetime.fromisoformat(run["data_interval_start"]) <= last)
        ]
