"""A trainer's pod, watched from Airflow: KubernetesPodOperator, with what it leaves open closed.

Only a task that trains in a pod imports this module: it brings the clients of Kubernetes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NoReturn

import pendulum
import tenacity
from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook, KubernetesHook
from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import (
    TRANSIENT_CONNECTION_ERRORS,
    TRANSIENT_STATUS_CODES,
    generic_api_retry,
)
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    AsyncPodManager,
    OnKillAction,
    PodManager,
    parse_log_line,
)
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger
from kubernetes import client  # noqa: TID253
from kubernetes.config import ConfigException  # noqa: TID253
from kubernetes_asyncio import client as async_client
from urllib3.exceptions import HTTPError

from evergreen.settings import PodSettings
from evergreen.training.backends import diagnosis
from evergreen.training.backends.pod import (
    GRACE_PERIOD_S,
    JOB_ANNOTATION,
    RUN_LABEL,
    SPEC_HASH_ANNOTATION,
    TRAINER_CONTAINER,
    label_value,
)
from evergreen.training.outcome import AttemptResult, Outcome, RetryableTrainingError

STATE = "evergreen"  # key of what the trigger echoes in its event
POD = "pod"  # in it: uid of the pod that it waits for

_API_AWAY_S = 600
_CREATIONS = 5
_CLOCKS_DIFFER_S = 10
_LONG_AGO = pendulum.datetime(1970, 1, 1)
_PATIENCE_S = 60  # beyond the grace period, for a node that is slow to answer


def _may_pass(error: BaseException) -> bool:
    """Whether the API server did not answer, or answered that it is not its day."""
    return isinstance(error, TRANSIENT_CONNECTION_ERRORS) or (
        isinstance(error, client.ApiException | async_client.ApiException) and error.status in TRANSIENT_STATUS_CODES
    )


# Hours of training are not to end because the API server was upgraded meanwhile.
_patiently = tenacity.retry(
    retry=tenacity.retry_if_exception(_may_pass),
    wait=tenacity.wait_exponential(min=1, max=30),
    stop=tenacity.stop_after_delay(_API_AWAY_S),
    reraise=True,
)


class TrainerPod(KubernetesPodOperator):
    """The one pod of a job: found or made, waited for, and removed once it is told how it ended.

    The name is the job's, and the API server gives a name to one pod at a time: that, and not a list of pods
    that looks right, keeps a second one away. What the operator concludes from a pod is not believed, but what
    the pod itself says (`evergreen.training.backends.diagnosis`): the operator takes one that was killed for a success.
    """

    def __init__(
        self,
        *,
        manifest: Mapping[str, Any],
        pods: PodSettings,
        longest: timedelta,
        state: Mapping[str, Any],
        **options: Any,
    ):
        super().__init__(
            task_id="train",
            name=manifest["metadata"]["name"],
            random_name_suffix=False,
            namespace=pods.namespace,
            pod_template_dict=dict(manifest),
            base_container_name=TRAINER_CONTAINER,
            termination_message_policy="FallbackToLogsOnError",  # its own default would win over the manifest's
            kubernetes_conn_id=pods.connection,
            deferrable=pods.deferrable,
            logging_interval=pods.logging_interval_seconds,
            startup_timeout_seconds=round(pods.startup_timeout_minutes * 60),
            startup_check_interval_seconds=2,
            execution_timeout=longest,
            on_finish_action="keep_pod",
            trigger_kwargs={STATE: dict(state)},
            **options,
        )
        # Of the pod of this attempt: another run of the same job may have made the next one by now.
        self._uid = ""

    def attempt(self, context: Any, event: Mapping[str, Any] | None = None) -> AttemptResult:
        """Make an attempt, or go on with one after the trigger's `event`; give how it ended. Its pod is deleted then.

        Raises:
            TaskDeferred: it goes on, and the trigger waits for it.
            TryAgain: this task was ended, and with it the attempt.
        """
        try:
            while True:
                problem = self._watched(context, event)
                if self._killed:
                    raise RetryableTrainingError(
                        "the task was ended from outside, and its pod with it: the next try goes on"
                    )
                pod = self._mine()
                if not (pod and problem and _may_pass(problem)) or diagnosis.is_pod_finished(pod):
                    return self._over(pod, problem)
                event = None  # the cluster was away, and the pod is at work: it is found again
        except _NotMade as fault:
            return fault.ended
        except client.ApiException as error:
            return diagnosis.diagnose_api_error(error.status, error.body or "", str(error.reason))
        except HTTPError as error:
            return diagnosis.diagnose_api_error(None, "", str(error))

    def _watched(self, context: Any, event: Mapping[str, Any] | None) -> Exception | None:
        """Let the operator do its work; give what it ran into, if it did: the pod tells more about it."""
        try:
            if event:
                self._uid = event[STATE][POD]
                # Waits for an API server that is away; what follows does not.
                if self._mine() is None:
                    return None
                self.trigger_reentry(context, dict(event))
            elif self.deferrable:
                self.execute_async(context)
            else:
                self.execute_sync(context)
        except _NotMade:
            raise
        except ConfigException as error:
            way_out = "name a connection in EVERGREEN_PODS__CONNECTION, or a file in KUBECONFIG"
            raise _NotMade(Outcome.BAD_CONFIG, f"no cluster is known: {error}: {way_out}") from None
        except AirflowNotFoundException as error:
            raise _NotMade(Outcome.BAD_CONFIG, f"{error}: make it, or correct EVERGREEN_PODS__CONNECTION") from None
        except Exception as error:
            if not self._uid:
                raise
            self.log.info("the pod is watched no longer: %s", _in_short(error))
            return error
        return None

    def _over(self, pod: diagnosis.PodJson | None, problem: Exception | None) -> AttemptResult:
        if pod is None:
            return diagnosis.POD_GONE
        self._await_last_word(pod)
        ended = diagnosis.diagnose_unrecoverable_pod(pod, datetime.now(UTC)) or diagnosis.diagnose_pod(
            pod, self._events(pod)
        )
        if not diagnosis.is_pod_finished(pod) and diagnosis.has_trainer_started(pod) and problem:
            ended = AttemptResult(ended.outcome, f"{ended.message}: {_in_short(problem)}")
        # Whoever makes the next one waits until it is gone; a kubelet may take a minute for one that never began.
        self._delete(pod["metadata"]["uid"])
        return ended

    # What the operator calls, and does otherwise.

    def get_or_create_pod(self, pod_request_obj: client.V1Pod, context: Any) -> client.V1Pod:
        """The pod of the job: the one that is there, or a new one once an old one is really gone.

        (The operator's own looks for labels, may find two, and would find none of another run's.)
        """
        wanted = _plain(pod_request_obj.to_dict(serialize=True))
        for failures in range(_CREATIONS):
            while (found := self._ask_for_it()) is not None:
                self._is_of_the_job(found)
                if diagnosis.is_pod_terminating(found):
                    self.log.info("pod %s is being deleted: waiting until it is gone", self.name)
                    self._await_end_of(found)
                elif self._counts(found, wanted):
                    self.log.info("pod %s is there already: going on with it", self.name)
                    return self._held(self.client.read_namespaced_pod(self.name, self.namespace))
                else:
                    self._delete(found["metadata"]["uid"])
            try:
                made = self._held(self.client.create_namespaced_pod(self.namespace, wanted))
                self.log.info("pod %s is made", self.name)
                return made
            except client.ApiException as error:
                # 409: somebody was faster, or the quota changed at that moment. Others: it may have been made.
                if failures + 1 == _CREATIONS or (error.status != 409 and error.status < 500):
                    raise _NotMade.by(
                        diagnosis.diagnose_api_error(error.status, error.body or "", str(error.reason))
                    ) from None
            except HTTPError as error:
                if failures + 1 == _CREATIONS:
                    raise _NotMade.by(diagnosis.diagnose_api_error(None, "", str(error))) from None
            time.sleep(2**failures / 2)
        raise AssertionError("the last failure is raised")

    def find_pod(self, namespace: str, context: Any, *, exclude_checked: bool = True) -> client.V1Pod | None:
        return self.client.read_namespaced_pod(self.name, namespace)

    def _write_logs(self, pod: client.V1Pod, follow: bool = False, since_time: datetime | None = None) -> None:
        answer = self.client.read_namespaced_pod_log(
            self.name,
            self.namespace,
            container=TRAINER_CONTAINER,
            timestamps=True,
            since_seconds=_seconds_since(since_time),
            _preload_content=False,
        )
        for line in _later_than(since_time, answer.data.decode(errors="backslashreplace").splitlines()):
            self.log.info("[%s] %s", TRAINER_CONTAINER, parse_log_line(line)[1])

    def cleanup(self, *_: Any, **__: Any) -> None:
        """Nothing: the pod is kept until it is told how it ended."""

    def on_kill(self) -> None:
        self._killed = True
        if self._uid:
            self._delete(self._uid)

    def defer(self, *, trigger: BaseTrigger, **how: Any) -> NoReturn:
        _, arguments = trigger.serialize()
        arguments["trigger_kwargs"][STATE][POD] = self._uid
        super().defer(trigger=TrainerPodTrigger(**arguments), **how)

    @cached_property
    def pod_manager(self) -> PodManager:
        return _Manager(kube_client=self.client, callbacks=self.callbacks)

    # The pod.

    def remove(self) -> None:
        """Delete the pod, if there is one."""
        if (pod := self._read()) is not None:
            self._delete(pod["metadata"]["uid"])

    def _held(self, pod: client.V1Pod) -> client.V1Pod:
        """From now on `on_kill` deletes it; and it does so now, if it was called while the pod was being made."""
        self._uid = pod.metadata.uid
        if self._killed:
            self._delete(self._uid)
            raise RetryableTrainingError("the task was ended from outside while its pod was made")
        return pod

    def _counts(self, found: diagnosis.PodJson, wanted: diagnosis.PodJson) -> bool:
        """Whether to go on with a pod that is there, rather than with a new one."""
        same = _annotation(found, SPEC_HASH_ANNOTATION) == _annotation(wanted, SPEC_HASH_ANNOTATION)
        if diagnosis.is_pod_finished(found):
            ended = diagnosis.diagnose_pod(found)
            if ended.outcome is Outcome.SUCCEEDED or (same and not ended.outcome.is_retryable):
                return True
            self.log.warning("an attempt that nobody watched ended: %s", ended.message)
            return False
        if not same and not diagnosis.has_trainer_started(found):
            self.log.info("pod %s waits with other settings than those of now: it is made anew", self.name)
            return False
        return True

    def _is_of_the_job(self, found: diagnosis.PodJson) -> None:
        assert self.pod_template_dict
        mine, its = _annotation(self.pod_template_dict, JOB_ANNOTATION), _annotation(found, JOB_ANNOTATION)
        if mine != its:
            raise _NotMade(
                Outcome.BAD_CONFIG,
                f"pod {self.name} in namespace {self.namespace} is at work for {its or 'something else'}, not for "
                f"{mine}: give each installation a namespace of its own (EVERGREEN_PODS__NAMESPACE)",
            )

    def _ask_for_it(self) -> dict[str, Any] | None:
        if self._killed:
            raise RetryableTrainingError("the task was ended from outside before its pod was made")
        try:
            return self._read()
        except client.ApiException as error:
            raise _NotMade.by(diagnosis.diagnose_api_error(error.status, error.body or "", str(error.reason))) from None
        except HTTPError as error:
            raise _NotMade.by(diagnosis.diagnose_api_error(None, "", str(error))) from None

    @_patiently
    def _mine(self) -> dict[str, Any] | None:
        """The pod of this attempt; None if it is gone."""
        found: dict[str, Any] | None = self._read()
        return found if found and found["metadata"]["uid"] == self._uid else None

    @generic_api_retry  # type: ignore[untyped-decorator]
    def _read(self) -> dict[str, Any] | None:
        try:
            found = self.client.read_namespaced_pod(self.name, self.namespace)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        return _plain(found.to_dict(serialize=True))

    def _await_last_word(self, pod: diagnosis.PodJson) -> None:
        """Kubelets before 1.22 say that a pod has failed while its container still has its grace period.

        Only the log tells when that is over: it is followed until it ends. Were the pod deleted before, its name
        would be free, and two trainers at work.
        """
        if not diagnosis.is_pod_finished(pod) or diagnosis.is_trainer_terminated(pod):
            return
        try:
            rest = self.client.read_namespaced_pod_log(
                self.name,
                self.namespace,
                container=TRAINER_CONTAINER,
                follow=True,
                tail_lines=1,
                _preload_content=False,
                _request_timeout=(10, GRACE_PERIOD_S + _PATIENCE_S),
            )
            for _ in rest.stream():
                pass
        except (client.ApiException, HTTPError):
            return  # nothing ran, or the node is gone, and what ran there with it

    def _events(self, pod: diagnosis.PodJson) -> list[dict[str, Any]]:
        try:
            found = self.client.list_namespaced_event(self.namespace, field_selector=_about(pod["metadata"]["uid"]))
        except (client.ApiException, HTTPError):
            return []  # they only make the sentence better
        return [_plain(event.to_dict(serialize=True)) for event in found.items]

    def _delete(self, uid: str) -> None:
        """Delete this very pod, and none that came after it."""
        body = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid))
        try:
            self.client.delete_namespaced_pod(self.name, self.namespace, body=body)
        except (client.ApiException, HTTPError) as error:
            if getattr(error, "status", None) not in (404, 409):
                self.log.warning("pod %s is not deleted, the next try goes on with it: %s", self.name, error)

    def _await_end_of(self, pod: diagnosis.PodJson) -> None:
        until = time.monotonic() + GRACE_PERIOD_S + _PATIENCE_S
        while (found := self._read()) and found["metadata"]["uid"] == pod["metadata"]["uid"]:
            if time.monotonic() > until:
                raise _NotMade(Outcome.UNKNOWN, diagnosis.stuck_termination_message(found))
            time.sleep(1)


def remove_all_of(run: str, pods: PodSettings) -> None:
    """Delete all pods that Airflow's `run` has made."""
    api = KubernetesHook(conn_id=pods.connection).core_v1_client
    left = api.list_namespaced_pod(pods.namespace, label_selector=f"{RUN_LABEL}={label_value(run)}").items
    for found in left:
        print(f"pod {found.metadata.name} is left of {run}: it is deleted")
        body = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=found.metadata.uid))
        try:
            api.delete_namespaced_pod(found.metadata.name, pods.namespace, body=body)
        except client.ApiException as error:
            if error.status not in (404, 409):
                raise


class TrainerPodTrigger(KubernetesPodTrigger):
    """Waits for a trainer's pod in the triggerer, not longer than there is hope for it."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        _, arguments = super().serialize()
        return f"{__name__}.{type(self).__name__}", arguments

    async def _get_pod(self) -> Any:
        pod = await super()._get_pod()
        _have_hope(pod)
        return pod

    @cached_property
    def hook(self) -> AsyncKubernetesHook:
        return _AsyncHook(
            conn_id=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            config_dict=self.config_dict,
            cluster_context=self.cluster_context,
            connection_extras=self.connection_extras,
        )

    @cached_property
    def pod_manager(self) -> AsyncPodManager:
        return _AsyncManager(async_hook=self.hook)

    async def on_kill(self) -> None:
        """The task was cleared, or marked by hand: delete this very pod, and none that came after it."""
        if self._fired_event or self.on_kill_action == OnKillAction.KEEP_POD:
            return
        preconditions = async_client.V1Preconditions(uid=self.trigger_kwargs[STATE][POD])
        options = async_client.V1DeleteOptions(preconditions=preconditions)
        async with self.hook.get_conn() as connection:
            try:
                await async_client.CoreV1Api(connection).delete_namespaced_pod(
                    self.pod_name, self.pod_namespace, body=options
                )
            except async_client.ApiException as error:
                if error.status not in (404, 409):
                    raise


# The operator shows events by the pod's name: those of the pods before it, too, whose troubles are over.


class _Manager(PodManager):
    def container_is_running(self, pod: client.V1Pod, container_name: str) -> bool:
        """Not in a pod that is over; the original believes what its container was seen doing last, and never ends."""
        found = _plain(self.read_pod(pod).to_dict(serialize=True))
        return not diagnosis.is_pod_finished(found) and diagnosis.is_trainer_running(found)

    def read_pod_events(self, pod: client.V1Pod, resource_version: str | None = None) -> Any:
        return self._client.list_namespaced_event(pod.metadata.namespace, field_selector=_about(pod.metadata.uid))

    @_patiently
    def read_pod(self, pod: client.V1Pod) -> client.V1Pod:
        found = super().read_pod(pod)
        _have_hope(found)
        return found

    @_patiently
    def read_pod_logs(self, *args: Any, **options: Any) -> Any:
        return super().read_pod_logs(*args, **options)


class _AsyncHook(AsyncKubernetesHook):
    @_patiently
    async def get_pod(self, name: str, namespace: str) -> Any:
        return await super().get_pod(name, namespace)

    @_patiently
    async def read_logs(self, *args: Any, **options: Any) -> list[str]:
        return await super().read_logs(*args, **options)

    async def watch_pod_events(self, name: str, namespace: str, *args: Any, **options: Any) -> AsyncIterator[Any]:
        uid = (await self.get_pod(name, namespace)).metadata.uid
        async for event in super().watch_pod_events(name, namespace, *args, **options):
            if event.involved_object.uid == uid:
                yield event


class _AsyncManager(AsyncPodManager):
    async def read_pod(self, pod: Any) -> Any:
        found = await super().read_pod(pod)
        _have_hope(found)
        return found

    async def fetch_container_logs_before_current_sec(
        self, pod: Any, container_name: str, since_time: datetime | None = None
    ) -> Any:
        """Each line once. The original goes by whole seconds of its own clock, and loses and repeats some."""
        lines = await self._hook.read_logs(
            pod.metadata.name, pod.metadata.namespace, container_name, _seconds_since(since_time)
        )
        new = _later_than(since_time, lines)
        await asyncio.to_thread(self._emit_container_logs, new, _LONG_AGO, container_name)
        return max((at for line in new if (at := parse_log_line(line)[0])), default=since_time)


class _NotMade(Exception):
    """There is no pod to wait for, and why."""

    def __init__(self, outcome: Outcome, sentence: str):
        super().__init__(sentence)
        self.ended = AttemptResult(outcome, sentence)

    @classmethod
    def by(cls, ended: AttemptResult) -> _NotMade:
        return cls(ended.outcome, ended.message)


class _Hopeless(Exception):
    """Kubernetes would wait on."""


def _in_short(error: Exception) -> str:
    """Clients print an answer with all its headers."""
    return f"{error.status} {error.reason}" if isinstance(error, client.ApiException) else str(error)


def _have_hope(pod: Any) -> None:
    if lost := diagnosis.diagnose_unrecoverable_pod(_plain(pod.to_dict(serialize=True)), datetime.now(UTC)):
        raise _Hopeless(lost.message)


def _seconds_since(time: datetime | None) -> int | None:
    """How far to look back, by the node's clock, for all that was logged after `time`; and a little further."""
    return math.ceil((datetime.now(UTC) - time).total_seconds()) + _CLOCKS_DIFFER_S if time else None


def _later_than(time: datetime | None, lines: list[str]) -> list[str]:
    """Those of a log with the node's times that are not known yet."""
    return [line for line in lines if not (time and (at := parse_log_line(line)[0])) or at > time]


def _about(uid: str) -> str:
    return f"involvedObject.uid={uid}"


def _annotation(pod: diagnosis.PodJson, key: str) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(key, ""))


def _plain(value: Any) -> Any:
    """The objects of both clients as the JSON that the API server speaks: without what is not set."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value
