"""Explains how a pod ended, or why it does not start, in a sentence that names the fix. Pure: reads Kubernetes' JSON.

The phrases are those of Kubernetes 1.20 to 1.34, which differ; text that is not recognized is quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from evergreen.training.backends.pod import TRAINER_CONTAINER
from evergreen.training.outcome import AttemptResult, Outcome

PodJson = Mapping[str, Any]

_unknown = partial(AttemptResult, Outcome.UNKNOWN)
_preempted = partial(AttemptResult, Outcome.PREEMPTED)
_out_of_memory = partial(AttemptResult, Outcome.OUT_OF_MEMORY)
_bad_config = partial(AttemptResult, Outcome.BAD_CONFIG)
_SUCCESS = AttemptResult(Outcome.SUCCEEDED, "")

_STALL_TIMEOUT = timedelta(seconds=60)
_SIDECAR_TIMEOUT = timedelta(seconds=10)
_SIGKILL, _SIGBUS = 137, 135  # 128 and their numbers on Linux, where pods run
_UNRECOVERABLE_REASONS = ("CreateContainerConfigError", "InvalidImageName", "ErrImageNeverPull")
_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_NODE_GONE_REASONS = ("NodeLost", "NodeShutdown", "Shutdown", "Terminated")
_DISRUPTIONS = {
    "PreemptionByScheduler": "it made room for a pod of higher priority",
    "DeletionByTaintManager": "its node was drained or is not ready",
    "EvictionByEvictionAPI": "it was evicted: its node is drained",
    "DeletionByPodGC": "its node was taken away",
    "TerminationByKubelet": "its node shuts down, or ran short of something",
}
_TRANSIENT_ERROR = re.compile(
    r"timeout|timed out|deadline exceeded|rate limit|toomanyrequests|too many requests|qps exceeded"
    r"|connection refused|connection reset|no such host|temporar"
    r"|bad gateway|service unavailable|internal server error",
    re.IGNORECASE,
)
_FULL_VOLUME = re.compile(r'emptyDir volume "([^"]+)" exceeds the limit "?([^". ]+)', re.IGNORECASE)
_NODE_PRESSURE = re.compile(r"low on resource: ?\[?([\w.-]+)|(DiskPressure|MemoryPressure|PIDPressure)")
_MISSING_PERMISSION = re.compile(r'User "([^"]+)" cannot (\w+) resource "([^"]+)".*?(?:namespace "([^"]+)")?$')


def diagnose_pod(pod: PodJson | None, events: Sequence[PodJson] = ()) -> AttemptResult:
    """Return how the pod ended, why it does not start, or, if nobody waits for it any longer, its last state.

    `pod` is None if it does not exist any more; `events` are those about it, in any order.
    """
    if pod is None:
        return _preempted("its pod is gone: somebody deleted it, or its node was taken away")
    terminated = _terminated_state(pod)
    if result := (terminated and _diagnose_container(terminated)) or _diagnose_pod_status(pod, terminated):
        return result
    if terminated:
        return _diagnose_exit_code(terminated)
    phase = pod["status"].get("phase", "Unknown")
    if phase == "Succeeded":
        return _SUCCESS
    scheduled = _condition(pod, "PodScheduled")
    if scheduled and scheduled.get("status") != "True":
        return _unknown(_unschedulable_message(pod, scheduled.get("message", "")))
    waiting = _waiting_state(pod)
    if waiting or phase == "Pending":
        return _diagnose_waiting_container(waiting, events)
    return _unknown(f"its pod was left {phase}, and is ended")


def is_pod_finished(pod: PodJson) -> bool:
    """Whether nothing runs in the pod any more, and nothing will."""
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def has_trainer_started(pod: PodJson) -> bool:
    """Whether its container is known to run, or to have run."""
    return bool({"running", "terminated"} & _container_state(pod).keys())


def is_wait_over(pod: PodJson, startup_timeout: timedelta, now: datetime) -> bool:
    """Whether there is no reason to wait for this pod any longer: it ended, or does not begin in time.

    `startup_timeout` counts twice: for a node to be found, and then for the container to start.
    """
    if is_pod_finished(pod) or diagnose_unrecoverable_pod(pod, now):
        return True
    if terminated := _terminated_state(pod):
        # The pod ends with its container, unless a sidecar was injected that does not.
        finished = terminated.get("finishedAt", "")
        return bool(finished) and now > datetime.fromisoformat(finished) + _SIDECAR_TIMEOUT
    return not has_trainer_started(pod) and now > _waiting_since(pod, now) + startup_timeout


def is_pod_terminating(pod: PodJson) -> bool:
    """Whether the pod is being deleted."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def diagnose_unrecoverable_pod(pod: PodJson, now: datetime) -> AttemptResult | None:
    """Return why waiting for this pod is pointless, though Kubernetes would wait, or None."""
    if is_pod_terminating(pod) and now > datetime.fromisoformat(pod["metadata"]["deletionTimestamp"]) + _STALL_TIMEOUT:
        return _unknown(stuck_termination_message(pod))
    waiting = _waiting_state(pod)
    if waiting.get("reason") in _UNRECOVERABLE_REASONS and now > _waiting_since(pod, now) + _STALL_TIMEOUT:
        return _diagnose_waiting_container(waiting, ())
    return None


def stuck_termination_message(pod: PodJson) -> str:
    """Explain a pod whose deletion does not end."""
    node = pod["spec"].get("nodeName", "?")
    return (
        f"pod {pod['metadata']['name']} was to be gone by {pod['metadata'].get('deletionTimestamp')}, and node {node} "
        "does not say that it is: the node may be cut off, with the trainer still at work, so no other is started. "
        f"Once the node is back, or removed (kubectl delete node {node}), clear the task: it goes on from there"
    )


def diagnose_api_error(status: int | None, body: str, reason: str = "") -> AttemptResult:
    """Explain why the API server did not create the pod, or did not respond (`status` None or 0).

    `body` is that of the response, mostly a Status object in JSON; without one, `reason` is the client's message.
    """
    message = body.strip()
    with suppress(ValueError, TypeError, KeyError):
        message = str(json.loads(body)["message"])
    message = message or reason or "no message"
    if not status:
        return _unknown(f"the cluster cannot be reached: {message}")
    if status == 401:
        return _bad_config(f"authentication failed ({message}): renew the credentials of EVERGREEN_PODS__CONNECTION")
    if status == 403:
        return _diagnose_forbidden(message)
    if status == 404:
        return _bad_config(f"{message}: create it, or correct EVERGREEN_PODS__NAMESPACE")
    if status in (400, 422):
        fix = "correct the model's resources or EVERGREEN_PODS__TEMPLATE"
        return _bad_config(f"the cluster rejects the pod: {message}: {fix}")
    return _unknown(f"the cluster responded {status}: {message}")


def _diagnose_container(terminated: PodJson) -> AttemptResult | None:
    """Return what the container itself makes certain, whatever happened to the pod."""
    reason, code = terminated.get("reason"), terminated.get("exitCode", 1)
    message = _termination_message(terminated)
    if code == 0:
        return _SUCCESS
    if reason == "OOMKilled":
        return _out_of_memory(
            "it used more memory than it has (OOMKilled): raise resources.memory_gib, of which shm_gib is a part, "
            "or make the batches smaller"
        )
    if reason in ("ContainerCannotRun", "StartError"):
        return _bad_config(f"the image cannot run a trainer: {message}: build it from trainer/Dockerfile")
    outcome = Outcome.from_exit_code(code)
    if reason == "ContainerStatusUnknown" or outcome.is_retryable:
        return None
    return AttemptResult(outcome, message or f"it ended with exit code {code} and wrote no message")


def _diagnose_pod_status(pod: PodJson, terminated: PodJson | None) -> AttemptResult | None:
    """Return what ended the pod from outside, or None."""
    status = pod["status"]
    reason, message = status.get("reason", ""), status.get("message", "")
    if reason == "Evicted":
        return _diagnose_eviction(message)
    if reason == "DeadlineExceeded":
        minutes = pod["spec"].get("activeDeadlineSeconds", 0) / 60
        return _unknown(
            f"it took longer than resources.timeout_minutes, {minutes:g}: the next try goes on from its last "
            "checkpoint; raise them if every attempt ends so"
        )
    if reason.startswith("OutOf") or reason in ("UnexpectedAdmissionError", "NodeAffinity", "NodePorts"):
        return _unknown(f"the node that it was given had no room after all ({reason}): {message}")
    if cause := _disruption_message(pod, reason, message):
        last_message = _termination_message(terminated or {})
        return _preempted(f"{cause} ({last_message})" if last_message else cause)
    if status.get("phase") == "Failed" and not terminated:
        name, state = _unfinished_init_container(pod)
        if "terminated" in state:
            return _diagnose_init_container(name, state["terminated"])
        return _unknown(f"its pod failed before it began: {reason or 'no reason is given'}: {message}")
    return None


def _diagnose_init_container(name: str, terminated: PodJson) -> AttemptResult:
    """Return how a container of the template ended that had to succeed before the trainer could begin."""
    reason, code, message = terminated.get("reason"), terminated.get("exitCode", 1), _termination_message(terminated)
    container = f"init container {name!r} of EVERGREEN_PODS__TEMPLATE"
    if reason == "OOMKilled":
        return _out_of_memory(f"{container} used more memory than it has (OOMKilled): raise its limit there")
    if reason in ("ContainerCannotRun", "StartError"):
        return _bad_config(f"{container} cannot run: {message}: correct its command or image")
    words = message or "it wrote no message; see its log"
    return _unknown(f"{container} ended with exit code {code}, so training did not begin: {words}")


def _diagnose_eviction(message: str) -> AttemptResult:
    if match := _FULL_VOLUME.search(message):
        volume, limit = match.groups()
        fix = "raise resources.shm_gib" if volume == "shm" else f"give volume {volume!r} more in the template"
        return _out_of_memory(f"it filled its volume {volume!r} ({limit}) and was evicted: {fix}")
    if "exceeds the total limit" in message or "exceeds the limit" in message:
        return _out_of_memory(f"it was evicted: {message}: raise that limit in EVERGREEN_PODS__TEMPLATE")
    if match := _NODE_PRESSURE.search(message):
        return _preempted(f"it was evicted, its node ran out of {(match[1] or match[2]).rstrip('.')}: {message}")
    return _preempted(f"it was evicted: {message}")


def _disruption_message(pod: PodJson, reason: str, message: str) -> str:
    if condition := _condition(pod, "DisruptionTarget"):
        cause = _DISRUPTIONS.get(condition.get("reason", ""), f"it was disrupted: {condition.get('reason')}")
        return f"{cause}: {condition['message']}" if condition.get("message") else cause
    if reason == "Preempting":
        return f"it made room for a pod of higher priority: {message}"
    if reason in _NODE_GONE_REASONS:
        return f"its node was taken away ({reason}): {message}"
    if (_terminated_state(pod) or {}).get("reason") == "ContainerStatusUnknown":
        return "its node was gone for a while, and lost sight of it"
    return "its pod was deleted, or its node drained" if is_pod_terminating(pod) else ""


def _diagnose_exit_code(terminated: PodJson) -> AttemptResult:
    code, message = terminated.get("exitCode", 1), _termination_message(terminated)
    outcome = Outcome.from_exit_code(code)
    if outcome is Outcome.PREEMPTED:
        return _preempted(message or "it was asked to leave")
    if code == _SIGKILL:
        cause = "it was killed (SIGKILL), and Kubernetes does not report why: often the node was short of memory"
        return AttemptResult(outcome, f"{cause}; its last message: {message}" if message else cause)
    if code == _SIGBUS:
        return _out_of_memory(
            "it was killed (SIGBUS): it used shared memory that /dev/shm has no room for: raise resources.shm_gib; "
            "or a file that it had mapped was cut short"
        )
    return AttemptResult(outcome, f"exit code {code}: {message or 'it wrote no message; see its log'}")


def _unschedulable_message(pod: PodJson, message: str) -> str:
    selector = pod["spec"].get("nodeSelector") or {}
    labels = ", ".join(f"{key}={value}" for key, value in sorted(selector.items()))
    explanations = {
        r"Insufficient (nvidia\.com/gpu|amd\.com/gpu)": "no GPU is free",
        r"Insufficient cpu": "no node has resources.cpu free",
        r"Insufficient (memory|ephemeral-storage)": r"no node has the \1 free that it asks for",
        r"didn't match (?:node selector|Pod's node affinity)": f"no node is labelled {labels or 'as asked for'}",
        r"had (?:untolerated )?taints? ?\{([^}]*)\}": r"nodes are kept for pods that tolerate \1",
        r"were unschedulable|node\(s\) had taint \{node\.kubernetes\.io/unschedulable": "nodes are cordoned",
    }
    matches = ((re.search(pattern, message), explanation) for pattern, explanation in explanations.items())
    causes = "; ".join(match.expand(explanation) for match, explanation in matches if match)
    return (
        f"no node took its pod in time: {causes or 'the scheduler gives no reason'} "
        f"({message.strip() or 'no message'}). It is tried again; for good, add such nodes, or correct the resources"
    )


def _diagnose_waiting_container(waiting: PodJson, events: Sequence[PodJson]) -> AttemptResult:
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE_REASONS:
        return _diagnose_image_pull(reason, message, events)
    if reason == "CreateContainerConfigError" and not _TRANSIENT_ERROR.search(message):
        fix = "create it in the namespace, or correct EVERGREEN_PODS__SECRET"
        return _bad_config(f"its container cannot be made: {message}: {fix}")
    if reason.startswith(("CreateContainer", "RunContainer")):
        return _unknown(f"its container could not be made ({reason}): {message}")
    warnings = [event for event in events if event.get("type") == "Warning"]
    if warnings := [event for event in warnings if event.get("reason") != "FailedScheduling"]:
        # A cluster also repeats warnings that are not the cause: prefer an event of something that failed.
        last = max(warnings, key=lambda event: (str(event.get("reason")).startswith("Failed"), _event_time(event)))
        return _unknown(f"it did not start in time ({last.get('reason')}): {last.get('message')}")
    event_reasons = {event.get("reason") for event in events}
    pulling = "Pulling" in event_reasons and "Pulled" not in event_reasons
    state = "its image was still being pulled" if pulling else f"it is still {reason or 'waiting'}"
    return _unknown(f"it did not start in time: {state}; raise EVERGREEN_PODS__STARTUP_TIMEOUT_MINUTES")


def _diagnose_image_pull(reason: str, message: str, events: Sequence[PodJson]) -> AttemptResult:
    # "Back-off pulling image" hides the cause, which is in the event about the pull before it.
    pulls = sorted((event for event in events if "pull image" in str(event.get("message"))), key=_event_time)
    text = " ".join([message, *(str(event["message"]) for event in pulls[-1:])]).strip()
    if reason != "InvalidImageName" and _TRANSIENT_ERROR.search(text):
        return _unknown(
            f"the registry did not give its image ({reason}): {text}; it is tried again, unless EVERGREEN_PODS__IMAGE "
            "names the wrong one: correct that"
        )
    return _bad_config(
        f"there is no such image, or it may not be pulled ({reason}): {text}: correct EVERGREEN_PODS__IMAGE, or name "
        "EVERGREEN_PODS__IMAGE_PULL_SECRET"
    )


def _diagnose_forbidden(message: str) -> AttemptResult:
    if "exceeded quota" in message:
        return _unknown(f"the namespace's quota leaves no room: {message}; it is tried again")
    if "violates PodSecurity" in message:
        return _bad_config(f"{message}: what the template adds is not allowed in this namespace")
    if any(phrase in message for phrase in ("failed quota", "must specify", "LimitRange", "usage per")):
        return _bad_config(f"{message}: set it in EVERGREEN_PODS__TEMPLATE, or change the model's resources")
    if match := _MISSING_PERMISSION.search(message):
        user, verb, resource, namespace = match.groups()
        scope = f" in namespace {namespace}" if namespace else ""
        return _bad_config(
            f"{user} may not {verb} {resource}{scope}: give it a Role with get, list, create and delete of pods, "
            "get of pods/log, and list of events"
        )
    return _bad_config(f"the cluster forbids it: {message}")


def _container_state(pod: PodJson) -> PodJson:
    """Return the state of the trainer's container; empty until a node has reported it."""
    containers = pod["status"].get("containerStatuses") or ()
    return next((item.get("state") or {} for item in containers if item["name"] == TRAINER_CONTAINER), {})


def _unfinished_init_container(pod: PodJson) -> tuple[str, PodJson]:
    """Return name and state of the init container that the trainer waits for, or that has failed; empty if none."""
    sidecars = {item["name"] for item in pod["spec"].get("initContainers") or () if item.get("restartPolicy")}
    for item in pod["status"].get("initContainerStatuses") or ():
        state = item.get("state") or {}
        has_succeeded = "terminated" in state and state["terminated"].get("exitCode") == 0
        if not has_succeeded and not (item["name"] in sidecars and "running" in state):
            return item["name"], state
    return "", {}


def _waiting_state(pod: PodJson) -> PodJson:
    """Return why the trainer's container, or an init container before it, waits; empty if neither does."""
    name, state = _unfinished_init_container(pod)
    if waiting := state.get("waiting"):
        return waiting
    if "running" in state:
        return {"reason": f"waiting for init container {name!r}"}
    return _container_state(pod).get("waiting") or {}


def _terminated_state(pod: PodJson) -> PodJson | None:
    return _container_state(pod).get("terminated")


def _termination_message(terminated: PodJson) -> str:
    """Return the last line of the container's termination message, cut so that it fits into a sentence."""
    lines = str(terminated.get("message") or "").strip().splitlines()
    return lines[-1].strip()[:500] if lines else ""


def _condition(pod: PodJson, condition_type: str) -> PodJson | None:
    conditions = pod["status"].get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == condition_type), None)


def _waiting_since(pod: PodJson, now: datetime) -> datetime:
    """Return when a node was found for the pod, or else when it was created."""
    condition = _condition(pod, "PodScheduled") or {}
    scheduled = condition.get("lastTransitionTime") if condition.get("status") == "True" else None
    since = scheduled or pod["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(since) if since else now


def _event_time(event: PodJson) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or "")
