"""How a pod ended, or why it does not begin, in a sentence with the way out. Pure: reads the JSON that Kubernetes gave.

The words are those of Kubernetes 1.20 to 1.34, which are not the same everywhere; what is not known is quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from evergreen.training.backends.pod import TRAINER_CONTAINER
from evergreen.training.outcome import AttemptResult, Outcome

PodJson = Mapping[str, Any]

POD_GONE = AttemptResult(Outcome.PREEMPTED, "its pod is gone: somebody deleted it, or its node was taken away")


def diagnose_pod(pod: PodJson | None, events: Sequence[PodJson] = ()) -> AttemptResult:
    """How the pod ended, if it did; or why it does not begin; or where it is, if somebody stopped waiting.

    Args:
        pod: as read last; None: there is none of its name any more.
        events: those about it, in any order.
    """
    if pod is None:
        return POD_GONE
    terminated = _terminated_state(pod)
    if said := terminated and _diagnose_container(terminated):
        return said
    if said := _diagnose_pod_status(pod, terminated):
        return said
    if terminated:
        return _diagnose_exit_code(terminated)
    if _status(pod).get("phase") == "Succeeded":
        return AttemptResult(Outcome.SUCCEEDED, "")
    return _diagnose_pending_pod(pod, events) or AttemptResult(
        Outcome.UNKNOWN, f"its pod was left {_status(pod).get('phase', 'Unknown')}, and is ended"
    )


def is_pod_finished(pod: PodJson) -> bool:
    """Whether nothing runs in the pod any more, and nothing will."""
    return _status(pod).get("phase") in ("Succeeded", "Failed")


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
        return bool(terminated.get("finishedAt")) and now > _parse_time(terminated["finishedAt"]) + _SIDECAR_TIMEOUT
    return not has_trainer_started(pod) and now > _waiting_since(pod, now) + startup_timeout


def is_pod_terminating(pod: PodJson) -> bool:
    """Whether it is being deleted."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def diagnose_unrecoverable_pod(pod: PodJson, now: datetime) -> AttemptResult | None:
    """Why nobody needs to wait for this pod any longer, though Kubernetes would; None if that is not so."""
    if is_pod_terminating(pod) and now > _parse_time(pod["metadata"]["deletionTimestamp"]) + _STALL_TIMEOUT:
        return AttemptResult(Outcome.UNKNOWN, stuck_termination_message(pod))
    waiting = _container_state(pod).get("waiting", {})
    if waiting.get("reason") in _UNRECOVERABLE_REASONS and now > _scheduled_at(pod, now) + _STALL_TIMEOUT:
        return _diagnose_waiting_container(waiting, ())
    return None


def stuck_termination_message(pod: PodJson) -> str:
    """What to say of a pod that was to be gone by now."""
    node = pod.get("spec", {}).get("nodeName", "?")
    return (
        f"pod {pod['metadata']['name']} was to be gone by {pod['metadata'].get('deletionTimestamp')}, and node {node} "
        "does not say that it is: the node may be cut off, with the trainer still at work, so no other is started. "
        f"Once the node is back, or removed (kubectl delete node {node}), clear the task: it goes on from there"
    )


def diagnose_api_error(status: int | None, body: str, reason: str = "") -> AttemptResult:
    """What it means that the API server did not make the pod, or did not answer (`status` None or 0).

    Args:
        status: of the HTTP answer.
        body: of the answer: mostly a Status object in JSON.
        reason: what the client says, if there is no body.
    """
    message = _api_error_message(body) or reason or "it says nothing more"
    if not status:
        return AttemptResult(Outcome.UNKNOWN, f"the cluster cannot be reached: {message}")
    if status == 401:
        return AttemptResult(
            Outcome.BAD_CONFIG,
            f"the cluster does not know who asks ({message}): renew the credentials of EVERGREEN_PODS__CONNECTION",
        )
    if status == 403:
        return _diagnose_forbidden(message)
    if status == 404:
        return AttemptResult(Outcome.BAD_CONFIG, f"{message}: create it, or correct EVERGREEN_PODS__NAMESPACE")
    if status in (400, 422):
        return AttemptResult(
            Outcome.BAD_CONFIG,
            f"the cluster takes no such pod: {message}: correct the model's resources or EVERGREEN_PODS__TEMPLATE",
        )
    return AttemptResult(Outcome.UNKNOWN, f"the cluster answered {status}: {message}")


_STALL_TIMEOUT = timedelta(seconds=60)
_SIDECAR_TIMEOUT = timedelta(seconds=10)
_SIGBUS = 135  # 128 and its number on Linux, where pods run
_UNRECOVERABLE_REASONS = ("CreateContainerConfigError", "InvalidImageName", "ErrImageNeverPull")
_IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
)
_TRANSIENT_PHRASES = (
    "timeout",
    "timed out",
    "deadline exceeded",
    "rate limit",
    "toomanyrequests",
    "too many requests",
    "qps exceeded",
    "connection refused",
    "connection reset",
    "no such host",
    "temporar",
    "bad gateway",
    "service unavailable",
    "internal server error",
)


def _diagnose_container(terminated: PodJson) -> AttemptResult | None:
    """What the container itself makes certain, whatever happened to the pod around it."""
    reason, code, message = (
        terminated.get("reason"),
        terminated.get("exitCode"),
        _termination_message(terminated),
    )
    if code == 0:
        return AttemptResult(Outcome.SUCCEEDED, "")
    if reason == "OOMKilled":
        return AttemptResult(
            Outcome.OUT_OF_MEMORY,
            "it used more memory than it has (OOMKilled): raise resources.memory_gib, of which shm_gib is a part, "
            "or make the batches smaller",
        )
    if reason in ("ContainerCannotRun", "StartError"):
        return AttemptResult(
            Outcome.BAD_CONFIG, f"the image cannot run a trainer: {message}: build it from trainer/Dockerfile"
        )
    if reason != "ContainerStatusUnknown" and code in {o.exit_code for o in Outcome if not o.is_retryable}:
        return AttemptResult(
            Outcome.from_exit_code(code), message or f"it ended with exit code {code} and said nothing"
        )
    return None


def _diagnose_pod_status(pod: PodJson, terminated: PodJson | None) -> AttemptResult | None:
    """What was done to the pod."""
    status, reason, message = _status(pod), _status(pod).get("reason", ""), _status(pod).get("message", "")
    if reason == "Evicted":
        return _diagnose_eviction(message)
    if reason == "DeadlineExceeded":
        minutes = pod.get("spec", {}).get("activeDeadlineSeconds", 0) / 60
        return AttemptResult(
            Outcome.UNKNOWN,
            f"it took longer than resources.timeout_minutes, {minutes:g}: the next try goes on from its last checkpoint; "
            "raise them if every attempt ends so",
        )
    if reason.startswith("OutOf") or reason in ("UnexpectedAdmissionError", "NodeAffinity", "NodePorts"):
        return AttemptResult(Outcome.UNKNOWN, f"the node that it was given had no room after all ({reason}): {message}")
    if why := _disruption_message(pod, reason, message):
        left = _termination_message(terminated) if terminated else ""
        return AttemptResult(Outcome.PREEMPTED, f"{why} ({left})" if left else why)
    if status.get("phase") == "Failed" and not terminated:
        return AttemptResult(
            Outcome.UNKNOWN, f"its pod failed before it began: {reason or 'no reason is given'}: {message}"
        )
    return None


def _diagnose_eviction(message: str) -> AttemptResult:
    if own := re.search(r'emptyDir volume "([^"]+)" exceeds the limit "?([^". ]+)', message, re.IGNORECASE):
        volume, limit = own.groups()
        way_out = "raise resources.shm_gib" if volume == "shm" else f"give volume {volume!r} more in the template"
        return AttemptResult(
            Outcome.OUT_OF_MEMORY, f"it filled its volume {volume!r} ({limit}) and was evicted: {way_out}"
        )
    if "exceeds the total limit" in message or "exceeds the limit" in message:
        return AttemptResult(
            Outcome.OUT_OF_MEMORY, f"it was evicted: {message}: raise that limit in EVERGREEN_PODS__TEMPLATE"
        )
    resource = re.search(r"low on resource: ?\[?([\w.-]+)|(DiskPressure|MemoryPressure|PIDPressure)", message)
    what = resource and (resource[1] or resource[2])
    return AttemptResult(
        Outcome.PREEMPTED,
        f"it was evicted, its node ran out of {what.rstrip('.')}: {message}" if what else f"it was evicted: {message}",
    )


_DISRUPTIONS = {
    "PreemptionByScheduler": "it made room for a pod of higher priority",
    "DeletionByTaintManager": "its node was drained or is not ready",
    "EvictionByEvictionAPI": "it was evicted: its node is drained",
    "DeletionByPodGC": "its node was taken away",
    "TerminationByKubelet": "its node shuts down, or ran short of something",
}


def _disruption_message(pod: PodJson, reason: str, message: str) -> str:
    if condition := _condition(pod, "DisruptionTarget"):
        why = _DISRUPTIONS.get(condition.get("reason", ""), f"it was disrupted: {condition.get('reason')}")
        return f"{why}: {condition['message']}" if condition.get("message") else why
    if reason == "Preempting":
        return f"it made room for a pod of higher priority: {message}"
    if reason in ("NodeLost", "NodeShutdown", "Shutdown", "Terminated"):
        return f"its node was taken away ({reason}): {message}"
    if (_terminated_state(pod) or {}).get("reason") == "ContainerStatusUnknown":
        return "its node was gone for a while, and lost sight of it"
    if is_pod_terminating(pod):
        return "its pod was deleted, or its node drained"
    return ""


def _diagnose_exit_code(terminated: PodJson) -> AttemptResult:
    code, message = terminated.get("exitCode", 1), _termination_message(terminated)
    outcome = Outcome.from_exit_code(code)
    if outcome is Outcome.PREEMPTED:
        return AttemptResult(outcome, message or "it was asked to leave")
    if code == 137:
        return AttemptResult(
            outcome,
            "it was killed (SIGKILL), and Kubernetes does not say why: often memory that its node was short of"
            + (f"; its last words: {message}" if message else ""),
        )
    if code == _SIGBUS:
        return AttemptResult(
            Outcome.OUT_OF_MEMORY,
            "it was killed (SIGBUS): it used shared memory that /dev/shm has no room for: raise resources.shm_gib; "
            "or a file that it had mapped was cut short",
        )
    return AttemptResult(outcome, f"exit code {code}: {message or 'it said nothing; see its log'}")


def _diagnose_pending_pod(pod: PodJson, events: Sequence[PodJson]) -> AttemptResult | None:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled and scheduled.get("status") != "True":
        return AttemptResult(Outcome.UNKNOWN, _unschedulable_message(pod, scheduled.get("message", "")))
    if waiting := _container_state(pod).get("waiting"):
        return _diagnose_waiting_container(waiting, events)
    if _status(pod).get("phase") == "Pending":
        return _diagnose_waiting_container({}, events)
    return None


def _unschedulable_message(pod: PodJson, message: str) -> str:
    selector = pod.get("spec", {}).get("nodeSelector") or {}
    labels = ", ".join(f"{key}={value}" for key, value in sorted(selector.items()))
    causes = [
        (r"Insufficient (nvidia\.com/gpu|amd\.com/gpu)", "no GPU is free"),
        (r"Insufficient cpu", "no node has resources.cpu free"),
        (r"Insufficient (memory|ephemeral-storage)", r"no node has the \1 free that it asks for"),
        (
            r"didn't match (?:node selector|Pod's node affinity)",
            f"no node is labelled {labels or 'as asked for'}",
        ),
        (
            r"had (?:untolerated )?taints? ?\{([^}]*)\}",
            r"nodes are kept for pods that tolerate \1",
        ),
        (
            r"were unschedulable|node\(s\) had taint \{node\.kubernetes\.io/unschedulable",
            "nodes are cordoned",
        ),
    ]
    found = [re.sub(pattern, words, match[0]) for pattern, words in causes if (match := re.search(pattern, message))]
    return (
        f"no node took its pod in time: {'; '.join(found) or 'the scheduler says no more'} "
        f"({message.strip() or 'no message'}). It is tried again; for good, add such nodes, or correct the resources"
    )


def _diagnose_waiting_container(waiting: PodJson, events: Sequence[PodJson]) -> AttemptResult:
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE_REASONS:
        return _diagnose_image_pull(reason, message, events)
    if reason == "CreateContainerConfigError" and not _is_transient(message):
        return AttemptResult(
            Outcome.BAD_CONFIG,
            f"its container cannot be made: {message}: create it in the namespace, or correct EVERGREEN_PODS__SECRET",
        )
    if reason.startswith(("CreateContainer", "RunContainer")):
        return AttemptResult(Outcome.UNKNOWN, f"its container could not be made ({reason}): {message}")
    warnings = [
        event for event in events if event.get("type") == "Warning" and event.get("reason") != "FailedScheduling"
    ]
    if warnings:
        # A cluster has standing complaints, too: what failed comes before them.
        last = max(warnings, key=lambda event: (str(event.get("reason")).startswith("Failed"), _event_time(event)))
        return AttemptResult(Outcome.UNKNOWN, f"it did not start in time ({last.get('reason')}): {last.get('message')}")
    pulling = any(event.get("reason") == "Pulling" for event in events)
    pulled = any(event.get("reason") == "Pulled" for event in events)
    what = "its image was still being pulled" if pulling and not pulled else f"it is still {reason or 'waiting'}"
    return AttemptResult(
        Outcome.UNKNOWN, f"it did not start in time: {what}; raise EVERGREEN_PODS__STARTUP_TIMEOUT_MINUTES"
    )


def _diagnose_image_pull(reason: str, message: str, events: Sequence[PodJson]) -> AttemptResult:
    # "Back-off pulling image" hides why; the event about the pull before it says so.
    told = [event for event in events if "pull image" in str(event.get("message"))]
    text = " ".join([message, *(str(event["message"]) for event in sorted(told, key=_event_time)[-1:])]).strip()
    if reason != "InvalidImageName" and _is_transient(text):
        return AttemptResult(
            Outcome.UNKNOWN,
            f"the registry did not give its image ({reason}): {text}; it is tried again, unless EVERGREEN_PODS__IMAGE "
            "names the wrong one: correct that",
        )
    return AttemptResult(
        Outcome.BAD_CONFIG,
        f"there is no such image, or it may not be pulled ({reason}): {text}: correct EVERGREEN_PODS__IMAGE, or name "
        "EVERGREEN_PODS__IMAGE_PULL_SECRET",
    )


def _is_transient(message: str) -> bool:
    """Whether it sounds like somebody who was busy, or away."""
    return any(sign in message.lower() for sign in _TRANSIENT_PHRASES)


def _diagnose_forbidden(message: str) -> AttemptResult:
    if "exceeded quota" in message:
        return AttemptResult(Outcome.UNKNOWN, f"the namespace's quota leaves no room: {message}; it is tried again")
    if "violates PodSecurity" in message:
        return AttemptResult(Outcome.BAD_CONFIG, f"{message}: what the template adds is not allowed in this namespace")
    if "failed quota" in message or "must specify" in message or "LimitRange" in message or "usage per" in message:
        return AttemptResult(
            Outcome.BAD_CONFIG,
            f"{message}: set it in EVERGREEN_PODS__TEMPLATE, or change the model's resources",
        )
    if right := re.search(r'User "([^"]+)" cannot (\w+) resource "([^"]+)".*?(?:namespace "([^"]+)")?$', message):
        user, verb, resource, namespace = right.groups()
        where = f" in namespace {namespace}" if namespace else ""
        return AttemptResult(
            Outcome.BAD_CONFIG,
            f"{user} may not {verb} {resource}{where}: give it a Role with get, list, create and delete of pods, "
            "get of pods/log, and list of events",
        )
    return AttemptResult(Outcome.BAD_CONFIG, f"the cluster forbids it: {message}")


def _api_error_message(body: str) -> str:
    try:
        found = json.loads(body or "")
    except ValueError:
        return body.strip()
    return str(found.get("message", "")) if isinstance(found, Mapping) else body.strip()


def _status(pod: PodJson) -> PodJson:
    return pod.get("status") or {}


def _container_state(pod: PodJson) -> PodJson:
    """Of the trainer's container; empty until a node has looked at it."""
    for container in _status(pod).get("containerStatuses") or ():
        if container.get("name") == TRAINER_CONTAINER:
            return {key: value for key, value in (container.get("state") or {}).items() if value is not None}
    return {}


def _terminated_state(pod: PodJson) -> PodJson | None:
    return _container_state(pod).get("terminated")


def _termination_message(terminated: PodJson) -> str:
    """The container's last words, in one line that fits into a sentence."""
    lines = str(terminated.get("message") or "").strip().splitlines()
    return lines[-1].strip()[:500] if lines else ""


def _condition(pod: PodJson, condition_type: str) -> PodJson | None:
    found = [condition for condition in _status(pod).get("conditions") or () if condition.get("type") == condition_type]
    return found[0] if found else None


def _scheduled_at(pod: PodJson, now: datetime) -> datetime:
    condition = _condition(pod, "PodScheduled")
    return _parse_time(condition["lastTransitionTime"]) if condition and condition.get("lastTransitionTime") else now


def _waiting_since(pod: PodJson, now: datetime) -> datetime:
    condition = _condition(pod, "PodScheduled")
    if condition and condition.get("status") == "True" and condition.get("lastTransitionTime"):
        return _parse_time(condition["lastTransitionTime"])
    created = pod["metadata"].get("creationTimestamp")
    return _parse_time(created) if created else now


def _event_time(event: PodJson) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or "")


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
