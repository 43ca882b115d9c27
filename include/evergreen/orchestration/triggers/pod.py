"""Wait for the pod of a training job, in the triggerer or in the task itself."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import tenacity
from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
from airflow.triggers.base import BaseTrigger, TriggerEvent
from kubernetes_asyncio.client import ApiClient, ApiException, CoreV1Api, V1DeleteOptions, V1Preconditions
from urllib3.exceptions import HTTPError

from evergreen.orchestration.triggers import serialize_trigger
from evergreen.training.backends import diagnosis
from evergreen.training.backends.pod import TRAINER_CONTAINER

_API_OUTAGE_S = 600  # hours of training are not to end because the API server is upgraded meanwhile
_POLL_S = 2
_LOG_OVERLAP_S = 10  # one fetch of the log looks back beyond the last one, which took some time itself
_TRANSIENT_STATUSES = frozenset({409, 429, 500, 502, 503, 504})


class TrainerPodTrigger(BaseTrigger):
    """Show the log of a pod while it runs, and fire once there is no reason to wait for it any longer.

    The event is `{"uid", "log_position", "problem", "state"}`: which pod it is about, the time of the last line that
    was shown, what kept the trigger from waiting on ("" if nothing did), and `state` as it was handed in. How the pod
    ended is not in it: whoever receives the event reads that from the cluster.
    """

    def __init__(
        self,
        *,
        name: str,
        namespace: str,
        uid: str,
        startup_seconds: float,
        logging_seconds: float,
        state: Mapping[str, Any],
        connection: str | None = None,
        in_cluster: bool | None = None,
        log_position: str = "",
    ):
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.namespace, self.uid = name, namespace, uid
        self.startup_seconds, self.logging_seconds = startup_seconds, logging_seconds
        self.connection, self.in_cluster = connection, in_cluster
        self.log_position = log_position
        self.state = dict(state)
        self._log_fetched = -math.inf
        self._events_shown: set[tuple[str, str]] = set()
        self._last_warning = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return serialize_trigger(self)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        problem, hook, last_contact, is_responding = "", self._hook(), time.monotonic(), True
        while time.monotonic() < last_contact + _API_OUTAGE_S:
            try:
                async with hook.get_conn() as connection:
                    if await self._poll(connection):
                        break
                last_contact, is_responding = time.monotonic(), True
            except Exception as error:
                if not is_transient(error):
                    self.log.exception("Pod %s cannot be watched", self.name)
                    problem = summary(error)
                    break
                if is_responding:
                    self.log.warning("The cluster does not respond, trying again: %s", summary(error))
                is_responding = False
            await asyncio.sleep(_POLL_S)
        yield TriggerEvent(  # type: ignore[no-untyped-call]
            {"uid": self.uid, "log_position": self.log_position, "problem": problem, "state": self.state}
        )

    async def on_kill(self) -> None:
        """Delete this very pod, and none that came after it: somebody cleared the task, or marked it."""
        options = V1DeleteOptions(preconditions=V1Preconditions(uid=self.uid))
        async with self._hook().get_conn() as connection:
            try:
                await CoreV1Api(connection).delete_namespaced_pod(self.name, self.namespace, body=options)
            except ApiException as error:
                if error.status not in (404, 409):
                    raise

    def _hook(self) -> AsyncKubernetesHook:
        return AsyncKubernetesHook(conn_id=self.connection, in_cluster=self.in_cluster)

    async def _poll(self, connection: ApiClient) -> bool:
        """Show what is new; return whether there is no reason to wait any longer."""
        api = CoreV1Api(connection)
        try:
            pod = connection.sanitize_for_serialization(await api.read_namespaced_pod(self.name, self.namespace))
        except ApiException as error:
            if error.status == 404:
                return True
            raise
        if pod["metadata"]["uid"] != self.uid:
            return True
        log_age = time.monotonic() - self._log_fetched
        settled = diagnosis.is_wait_over(pod, timedelta(seconds=self.startup_seconds), datetime.now(UTC))
        if not diagnosis.has_trainer_started(pod):
            await self._show_events(api)
        elif settled or diagnosis.is_pod_terminating(pod) or log_age >= self.logging_seconds:
            await self._show_log(api, complete=settled)
        return settled

    async def _show_events(self, api: CoreV1Api) -> None:
        """Log what Kubernetes reports of this pod before it runs: images pulled, nodes awaited."""
        try:
            events = await api.list_namespaced_event(self.namespace, field_selector=f"involvedObject.uid={self.uid}")
        except (ApiException, ClientError, TimeoutError) as error:
            self._warn(f"The events of pod {self.name} cannot be listed: {summary(error)}")
            return
        for event in events.items:
            if (key := (event.reason, event.message)) not in self._events_shown:
                self._events_shown.add(key)
                self.log.info("%s: %s", *key)

    async def _show_log(self, api: CoreV1Api, complete: bool) -> None:
        """Log the lines that are new. One that is still being written is left to the next time unless `complete`."""
        try:
            text = await self._fetch_log(api)
        except (ApiException, ClientError, TimeoutError) as error:
            # The log is on the node, which may be gone. Whether to wait for the pod does not depend on it.
            self._warn(f"The log of pod {self.name} cannot be read: {summary(error)}")
            return
        lines, self.log_position = new_lines(text, self.log_position, complete=complete)
        await asyncio.to_thread(self._log_lines, lines)

    @tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1), reraise=True)
    async def _fetch_log(self, api: CoreV1Api) -> str:
        now = time.monotonic()
        options: dict[str, Any] = {}
        if math.isfinite(self._log_fetched):
            options["since_seconds"] = math.ceil(now - self._log_fetched) + _LOG_OVERLAP_S
        response: Any = await api.read_namespaced_pod_log(
            self.name,
            self.namespace,
            container=TRAINER_CONTAINER,
            timestamps=True,
            _preload_content=False,  # the client would fail where a trainer prints something else than UTF-8
            **options,
        )
        response.raise_for_status()
        text = (await response.read()).decode(errors="backslashreplace")
        self._log_fetched = now
        return text

    def _log_lines(self, lines: list[str]) -> None:
        for line in lines:
            self.log.info("[%s] %s", TRAINER_CONTAINER, line)

    def _warn(self, text: str) -> None:
        """Log `text`, once as long as nothing changes."""
        if text != self._last_warning:
            self.log.warning(text)
            self._last_warning = text


def new_lines(text: str, position: str, *, complete: bool) -> tuple[list[str], str]:
    """The lines of a log with timestamps that come after `position`, without these, and the position after them.

    A position is the timestamp of a line, as the node wrote it: nobody's clock is compared with another one. A log
    in which it does not occur was rotated, and is new as a whole. In a log that is `complete` the last line counts
    although it does not end.
    """
    end = len(text) if complete else text.rfind("\n") + 1
    lines = [line.partition(" ") for line in text[:end].split("\n") if line]
    timestamps = [timestamp for timestamp, _, _ in lines]
    if position in timestamps:
        lines = lines[len(timestamps) - timestamps[::-1].index(position) :]
    return [line.rstrip("\r") for _, _, line in lines], timestamps[-1] if timestamps else position


def is_transient(error: BaseException) -> bool:
    """Whether the API server did not respond, or responded that it is busy, to either client."""
    return (
        isinstance(error, HTTPError | ClientError | TimeoutError)
        or getattr(error, "status", None) in _TRANSIENT_STATUSES
    )


def summary(error: BaseException) -> str:
    """`error` in one line; both clients print a response with all its headers."""
    if getattr(error, "status", None):
        return f"{error.status} {getattr(error, 'reason', '')}".strip()  # type: ignore[attr-defined]
    return str(error) or type(error).__name__
