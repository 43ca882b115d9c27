"""The pod of a training job as the task sees it: created or adopted, awaited, diagnosed and deleted.

Only a task that trains in a pod imports this module: it brings the client of Kubernetes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import tenacity
from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.sdk.exceptions import AirflowNotFoundException, TaskDeferred
from kubernetes.client import ApiException, CoreV1Api  # noqa: TID253
from kubernetes.config import ConfigException  # noqa: TID253
from urllib3.exceptions import HTTPError

from evergreen.orchestration.triggers.pod import TrainerPodTrigger, is_transient, summary
from evergreen.settings import PodSettings
from evergreen.training.backends import diagnosis
from evergreen.training.backends.pod import GRACE_PERIOD_S, JOB_ANNOTATION, RUN_LABEL, SPEC_HASH_ANNOTATION, label_value
from evergreen.training.outcome import AttemptResult, Outcome, RetryableTrainingError

log = logging.getLogger(__name__)

_DELETION_S = GRACE_PERIOD_S + 60  # a node may be slow to report
_SYNC_LOGGING_S = 2  # a task that waits by itself shows the log as it is written

_retry_transient = tenacity.retry(
    retry=tenacity.retry_if_exception(is_transient),
    wait=tenacity.wait_exponential(multiplier=0.5),
    stop=tenacity.stop_after_attempt(6),  # 15 s; longer outages are for Airflow's retries, which adopt the pod
    reraise=True,
)


class TrainerPod:
    """The only pod of a job.

    The pod is named by the job, and the API server gives a name to one pod at a time: that, and not a list of
    pods that looks right, keeps a second one away.

    `manifest` is that of `pod_manifest`, `timeout` that of a deferral, and `state` becomes part of the trigger's event.
    """

    def __init__(self, *, manifest: Mapping[str, Any], pods: PodSettings, timeout: timedelta, state: Mapping[str, Any]):
        self.name = manifest["metadata"]["name"]
        self._manifest, self._pods, self._timeout, self._state = manifest, pods, timeout, state
        self._hook = KubernetesHook(conn_id=pods.connection)
        self._startup_timeout = timedelta(minutes=pods.startup_timeout_minutes)
        # Of the pod of this attempt: another run of the same job may have created the next one by now.
        self._uid = ""
        self._is_killed = False

    def attempt(self, event: Mapping[str, Any] | None = None) -> AttemptResult:
        """Make an attempt, or continue the one of the trigger's `event`; return how it ended. Its pod is deleted then.

        Raises:
            TaskDeferred: the attempt goes on, and the trigger waits for it.
            RetryableTrainingError: this task was ended, and with it the attempt.
        """
        try:
            if event is None:
                self._create_or_adopt()
                event = self._await_event()
            self._uid = event["uid"]
            return self._monitor(event)
        except _NotStartedError as error:
            return AttemptResult(*error.args)
        except ConfigException as error:
            fix = "name a connection in EVERGREEN_PODS__CONNECTION, or a file in KUBECONFIG"
            return AttemptResult(Outcome.BAD_CONFIG, f"no cluster is known: {error}: {fix}")
        except AirflowNotFoundException as error:
            return AttemptResult(Outcome.BAD_CONFIG, f"{error}: make it, or correct EVERGREEN_PODS__CONNECTION")
        except ApiException as error:
            return diagnosis.diagnose_api_error(error.status, error.body or "", str(error.reason))
        except HTTPError as error:
            return diagnosis.diagnose_api_error(None, "", str(error))

    def on_kill(self) -> None:
        """Delete the pod; `attempt`, in which the task is, raises RetryableTrainingError then."""
        self._is_killed = True
        if self._uid:
            self._delete()

    @_retry_transient
    def _create_or_adopt(self) -> None:
        """Have a pod: the one that exists, or a new one once an old one is really gone.

        Retried when the API server does not respond, for the pod may have been created nevertheless, and also when it
        responds with a conflict: another task was faster, or the quota changed at that moment.
        """
        while (pod := self._read()) is not None:
            self._raise_if_killed()
            job, pod_job = _annotation(self._manifest, JOB_ANNOTATION), _annotation(pod, JOB_ANNOTATION)
            if job != pod_job:
                raise _NotStartedError(
                    Outcome.BAD_CONFIG,
                    f"pod {self.name} in namespace {self._pods.namespace} works on {pod_job or 'something else'}, not "
                    f"on {job}: give each installation a namespace of its own (EVERGREEN_PODS__NAMESPACE)",
                )
            if diagnosis.is_pod_terminating(pod):
                log.info("Pod %s is being deleted: waiting until it is gone", self.name)
                self._await_deletion(pod)
            elif self._is_reusable(pod):
                log.info("Pod %s exists already: this task continues with it", self.name)
                self._hold(pod["metadata"]["uid"])
                return
            else:
                delete_pod(self._api, self._pods.namespace, self.name, pod["metadata"]["uid"])
        self._raise_if_killed()
        pod = self._api.create_namespaced_pod(self._pods.namespace, dict(self._manifest))
        log.info("Pod %s is created", self.name)
        self._hold(pod.metadata.uid)

    def _is_reusable(self, pod: diagnosis.PodJson) -> bool:
        """Whether to continue with a pod that exists, rather than with a new one."""
        is_current = _annotation(pod, SPEC_HASH_ANNOTATION) == _annotation(self._manifest, SPEC_HASH_ANNOTATION)
        if diagnosis.is_pod_finished(pod):
            result = diagnosis.diagnose_pod(pod)
            if result.outcome is Outcome.SUCCEEDED or (is_current and not result.outcome.is_retryable):
                return True
            log.warning("An attempt that nobody watched ended: %s", result.message)
            return False
        if not is_current and not diagnosis.has_trainer_started(pod):
            log.info("Pod %s waits with outdated settings: it is replaced", self.name)
            return False
        return True

    def _await_deletion(self, pod: diagnosis.PodJson) -> None:
        deadline = time.monotonic() + _DELETION_S
        while (current := self._read()) and current["metadata"]["uid"] == pod["metadata"]["uid"]:
            self._raise_if_killed()
            if time.monotonic() > deadline:
                raise _NotStartedError(Outcome.UNKNOWN, diagnosis.stuck_termination_message(current))
            time.sleep(1)

    def _hold(self, uid: str) -> None:
        """From now on `on_kill` deletes the pod; and this does, if the task was killed while it was being created."""
        self._uid = uid
        if self._is_killed:
            self._delete()
            self._raise_if_killed()

    def _raise_if_killed(self) -> None:
        if self._is_killed:
            raise RetryableTrainingError("the task was ended from outside, and its pod with it: the next try goes on")

    def _monitor(self, event: Mapping[str, Any]) -> AttemptResult:
        while True:
            self._raise_if_killed()
            pod = _retry_transient(self._read)()
            if not pod or pod["metadata"]["uid"] != self._uid:
                return diagnosis.diagnose_pod(None)
            problem = event["problem"]
            if problem or diagnosis.is_wait_over(pod, self._startup_timeout, datetime.now(UTC)):
                break
            # The API server was away for long, and the pod is at work.
            event = self._await_event(event["log_position"])
        unrecoverable = diagnosis.diagnose_unrecoverable_pod(pod, datetime.now(UTC))
        result = unrecoverable or diagnosis.diagnose_pod(pod, self._events())
        if problem and diagnosis.has_trainer_started(pod) and not diagnosis.is_pod_finished(pod):
            result = AttemptResult(result.outcome, f"{result.message}: {problem}")
        # Whoever creates the next one waits until it is gone; a kubelet may take a minute for one that never began.
        self._delete()
        return result

    def _await_event(self, log_position: str = "") -> Mapping[str, Any]:
        is_deferrable = self._pods.deferrable
        trigger = TrainerPodTrigger(
            name=self.name,
            namespace=self._pods.namespace,
            uid=self._uid,
            startup_seconds=self._startup_timeout.total_seconds(),
            logging_seconds=self._pods.logging_interval_seconds if is_deferrable else _SYNC_LOGGING_S,
            connection=self._pods.connection,
            # The triggerer's client does not find out by itself that it runs in the cluster.
            in_cluster=self._hook.is_in_cluster,
            log_position=log_position,
            state=self._state,
        )
        if is_deferrable:
            raise TaskDeferred(trigger=trigger, method_name="execute_complete", timeout=self._timeout)
        return asyncio.run(_first_event(trigger))

    @property
    def _api(self) -> CoreV1Api:
        return self._hook.core_v1_client

    def _read(self) -> diagnosis.PodJson | None:
        """The pod of the job, whichever that is; None if there is none."""
        try:
            return _to_json(self._api, self._api.read_namespaced_pod(self.name, self._pods.namespace))
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _events(self) -> list[diagnosis.PodJson]:
        selector = f"involvedObject.uid={self._uid}"
        try:
            events = self._api.list_namespaced_event(self._pods.namespace, field_selector=selector)
        except (ApiException, HTTPError):
            return []  # they only make the message better
        return [_to_json(self._api, event) for event in events.items]

    def _delete(self) -> None:
        try:
            delete_pod(self._api, self._pods.namespace, self.name, self._uid)
        except (ApiException, HTTPError) as error:
            log.warning("Pod %s is not deleted, the next try continues with it: %s", self.name, summary(error))


def delete_pod(api: CoreV1Api, namespace: str, name: str, uid: str) -> None:
    """Delete the pod with this uid, unless it is gone; never another one of its name."""
    try:
        api.delete_namespaced_pod(name, namespace, body={"preconditions": {"uid": uid}})
    except ApiException as error:
        if error.status not in (404, 409):
            raise


def delete_pods_of_run(run: str, pods: PodSettings) -> None:
    """Delete all pods that Airflow's `run` has created."""
    api = KubernetesHook(conn_id=pods.connection).core_v1_client
    for pod in api.list_namespaced_pod(pods.namespace, label_selector=f"{RUN_LABEL}={label_value(run)}").items:
        log.info("Pod %s is left of %s: it is deleted", pod.metadata.name, run)
        delete_pod(api, pods.namespace, pod.metadata.name, pod.metadata.uid)


class _NotStartedError(Exception):
    """There is no pod to wait for; its arguments are the outcome and why."""


async def _first_event(trigger: TrainerPodTrigger) -> Mapping[str, Any]:
    return (await anext(trigger.run())).payload


def _annotation(pod: Mapping[str, Any], key: str) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(key, ""))


def _to_json(api: CoreV1Api, resource: Any) -> diagnosis.PodJson:
    return api.api_client.sanitize_for_serialization(resource)
