"""How a pod ended, or why it does not begin, in a sentence with the way out. Pure: reads the JSON that Kubernetes gave.

The words are those of Kubernetes 1.20 to 1.34, which are not the same everywhere; what is not known is quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from evergreen.training.backends.pod import CONTAINER
from evergreen.training.outcome import Ended, Outcome

Json = Mapping[str, Any]

GONE = Ended(Outcome.PREEMPTED, "its pod is gone: somebody deleted it, or its node was taken away")


def ended(pod: Json | None, events: Sequence[Json] = ()) -> Ended:
    """How the pod ended, if it did; or why it does not begin; or where it is, if somebody stopped waiting.

    Args:
        pod: as read last; None: there is none of its name any more.
        events: those about it, in any order.
    """
    if pod is None:
        return GONE
    terminated = _terminated(pod)
    if said := terminated and _by_container(terminated):
        return said
    if said := _by_pod(pod, terminated):
        return said
    if terminated:
        return _by_exit_code(terminated)
    if _status(pod).get("phase") == "Succeeded":
        return Ended(Outcome.SUCCEEDED, "")
    return _not_begun(pod, events) or Ended(
        Outcome.UNKNOWN, f"its pod was left {_status(pod).get('phase', 'Unknown')}, and is ended"
    )


def is_over(pod: Json) -> bool:
    """Whether nothing runs in the pod any more, and nothing will."""
    return _status(pod).get("phase") in ("Succeeded", "Failed")


def has_begun(pod: Json) -> bool:
    """Whether its container is known to run, or to have run."""
    return bool({"running", "terminated"} & _state(pod).keys())


def is_settled(pod: Json, startup: timedelta, now: datetime) -> bool:
    """Whether there is no reason to wait for this pod any longer: it ended, or does not begin within `startup`.

    That time counts twice: for a node to be found, and then for the container to start.
    """
    if is_over(pod) or hopeless(pod, now):
        return True
    if terminated := _terminated(pod):
        # The pod ends with its container, unless a sidecar was injected that does not.
        return bool(terminated.get("finishedAt")) and now > _time(terminated["finishedAt"]) + _SIDECARS
    return not has_begun(pod) and now > _waits_since(pod, now) + startup


def is_leaving(pod: Json) -> bool:
    """Whether it is being deleted."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def hopeless(pod: Json, now: datetime) -> Ended | None:
    """Why nobody needs to wait for this pod any longer, though Kubernetes would; None if that is not so."""
    if is_leaving(pod) and now > _time(pod["metadata"]["deletionTimestamp"]) + _PATIENCE:
        return Ended(Outcome.UNKNOWN, stuck(pod))
    waiting = _state(pod).get("waiting", {})
    if waiting.get("reason") in _NOT_BY_ITSELF and now > _scheduled(pod, now) + _PATIENCE:
        return _waiting(waiting, ())
    return None


def stuck(pod: Json) -> str:
    """What to say of a pod that was to be gone by now."""
    node = pod.get("spec", {}).get("nodeName", "?")
    return (
        f"pod {pod['metadata']['name']} was to be gone by {pod['metadata'].get('deletionTimestamp')}, and node {node} "
        "does not say that it is: the node may be cut off, with the trainer still at work, so no other is started. "
        f"Once the node is back, or removed (kubectl delete node {node}), clear the task: it goes on from there"
    )


def refused(status: int | None, body: str, reason: str = "") -> Ended:
    """What it means that the API server did not make the pod, or did not answer (`status` None or 0).

    Args:
        status: of the HTTP answer.
        body: of the answer: mostly a Status object in JSON.
        reason: what the client says, if there is no body.
    """
    message = _message(body) or reason or "it says nothing more"
    if not status:
        return Ended(Outcome.UNKNOWN, f"the cluster cannot be reached: {message}")
    if status == 401:
        return Ended(
            Outcome.REFUSED,
            f"the cluster does not know who asks ({message}): renew the credentials of EVERGREEN_PODS__CONNECTION",
        )
    if status == 403:
        return _forbidden(message)
    if status == 404:
        return Ended(Outcome.REFUSED, f"{message}: create it, or correct EVERGREEN_PODS__NAMESPACE")
    if status in (400, 422):
        return Ended(
            Outcome.REFUSED,
            f"the cluster takes no such pod: {message}: correct the model's resources or EVERGREEN_PODS__TEMPLATE",
        )
    return Ended(Outcome.UNKNOWN, f"the cluster answered {status}: {message}")


_PATIENCE = timedelta(seconds=60)
_SIDECARS = timedelta(seconds=10)
_NOT_BY_ITSELF = ("CreateContainerConfigError", "InvalidImageName", "ErrImageNeverPull")
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_PASSING = (
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


def _by_container(terminated: Json) -> Ended | None:
    """What the container itself makes certain, whatever happened to the pod around it."""
    reason, code, message = terminated.get("reason"), terminated.get("exitCode"), _said(terminated)
    if code == 0:
        return Ended(Outcome.SUCCEEDED, "")
    if reason == "OOMKilled":
        return Ended(
            Outcome.OUT_OF_MEMORY,
            "it used more memory than it has (OOMKilled): raise resources.memory_gib, of which shm_gib is a part, "
            "or make the batches smaller",
        )
    if reason in ("ContainerCannotRun", "StartError"):
        return Ended(
            Outcome.REFUSED, f"the image cannot run a trainer: {message}: build it from trainer/Dockerfile"
        )
    if reason != "ContainerStatusUnknown" and code in {o.exit_code for o in Outcome if not o.may_pass}:
        return Ended(Outcome.of(code), message or f"it ended with exit code {code} and said nothing")
    return None


def _by_pod(pod: Json, terminated: Json | None) -> Ended | None:
    """What was done to the pod."""
    status, reason, message = _status(pod), _status(pod).get("reason", ""), _status(pod).get("message", "")
    if reason == "Evicted":
        return _evicted(message)
    if reason == "DeadlineExceeded":
        minutes = pod.get("spec", {}).get("activeDeadlineSeconds", 0) / 60
        return Ended(
            Outcome.UNKNOWN,
            f"it took longer than resources.minutes, {minutes:g}: the next try goes on from its last checkpoint; "
            "raise them if every attempt ends so",
        )
    if reason.startswith("OutOf") or reason in ("UnexpectedAdmissionError", "NodeAffinity", "NodePorts"):
        return Ended(
            Outcome.UNKNOWN, f"the node that it was given had no room after all ({reason}): {message}"
        )
    if why := _taken_away(pod, reason, message):
        left = _said(terminated) if terminated else ""
        return Ended(Outcome.PREEMPTED, f"{why} ({left})" if left else why)
    if status.get("phase") == "Failed" and not terminated:
        return Ended(
            Outcome.UNKNOWN, f"its pod failed before it began: {reason or 'no reason is given'}: {message}"
        )
    return None


def _evicted(message: str) -> Ended:
    if own := re.search(r'emptyDir volume "([^"]+)" exceeds the limit "?([^". ]+)', message, re.IGNORECASE):
        volume, limit = own.groups()
        way_out = (
            "raise resources.shm_gib" if volume == "shm" else f"give volume {volume!r} more in the template"
        )
        return Ended(
            Outcome.OUT_OF_MEMORY, f"it filled its volume {volume!r} ({limit}) and was evicted: {way_out}"
        )
    if "exceeds the total limit" in message or "exceeds the limit" in message:
        return Ended(
            Outcome.OUT_OF_MEMORY, f"it was evicted: {message}: raise that limit in EVERGREEN_PODS__TEMPLATE"
        )
    resource = re.search(r"low on resource: ?\[?([\w.-]+)|(DiskPressure|MemoryPressure|PIDPressure)", message)
    what = resource and (resource[1] or resource[2])
    return Ended(
        Outcome.PREEMPTED,
        f"it was evicted, its node ran out of {what.rstrip('.')}: {message}"
        if what
        else f"it was evicted: {message}",
    )


_DISRUPTIONS = {
    "PreemptionByScheduler": "it made room for a pod of higher priority",
    "DeletionByTaintManager": "its node was drained or is not ready",
    "EvictionByEvictionAPI": "it was evicted: its node is drained",
    "DeletionByPodGC": "its node was taken away",
    "TerminationByKubelet": "its node shuts down, or ran short of something",
}


def _taken_away(pod: Json, reason: str, message: str) -> str:
    if condition := _condition(pod, "DisruptionTarget"):
        why = _DISRUPTIONS.get(condition.get("reason", ""), f"it was disrupted: {condition.get('reason')}")
        return f"{why}: {condition['message']}" if condition.get("message") else why
    if reason == "Preempting":
        return f"it made room for a pod of higher priority: {message}"
    if reason in ("NodeLost", "NodeShutdown", "Shutdown", "Terminated"):
        return f"its node was taken away ({reason}): {message}"
    if (_terminated(pod) or {}).get("reason") == "ContainerStatusUnknown":
        return "its node was gone for a while, and lost sight of it"
    if is_leaving(pod):
        return "its pod was deleted, or its node drained"
    return ""


def _by_exit_code(terminated: Json) -> Ended:
    code, message = terminated.get("exitCode", 1), _said(terminated)
    outcome = Outcome.of(code)
    if outcome is Outcome.PREEMPTED:
        return Ended(outcome, message or "it was asked to leave")
    if code == 137:
        return Ended(
            outcome,
            "it was killed (SIGKILL), and Kubernetes does not say why: often memory that its node was short of"
            + (f"; its last words: {message}" if message else ""),
        )
    return Ended(outcome, f"exit code {code}: {message or 'it said nothing; see its log'}")


def _not_begun(pod: Json, events: Sequence[Json]) -> Ended | None:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled and scheduled.get("status") != "True":
        return Ended(Outcome.UNKNOWN, _unschedulable(pod, scheduled.get("message", "")))
    if waiting := _state(pod).get("waiting"):
        return _waiting(waiting, events)
    if _status(pod).get("phase") == "Pending":
        return _waiting({}, events)
    return None


def _unschedulable(pod: Json, message: str) -> str:
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
    found = [
        re.sub(pattern, words, match[0])
        for pattern, words in causes
        if (match := re.search(pattern, message))
    ]
    return (
        f"no node took its pod in time: {'; '.join(found) or 'the scheduler says no more'} "
        f"({message.strip() or 'no message'}). It is tried again; for good, add such nodes, or correct the resources"
    )


def _waiting(waiting: Json, events: Sequence[Json]) -> Ended:
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE:
        return _image(reason, message, events)
    if reason == "CreateContainerConfigError" and not _passes(message):
        return Ended(
            Outcome.REFUSED,
            f"its container cannot be made: {message}: create it in the namespace, or correct EVERGREEN_PODS__SECRET",
        )
    if reason.startswith(("CreateContainer", "RunContainer")):
        return Ended(Outcome.UNKNOWN, f"its container could not be made ({reason}): {message}")
    warnings = [
        event
        for event in events
        if event.get("type") == "Warning" and event.get("reason") != "FailedScheduling"
    ]
    if warnings:
        # A cluster has standing complaints, too: what failed comes before them.
        last = max(warnings, key=lambda event: (str(event.get("reason")).startswith("Failed"), _when(event)))
        return Ended(
            Outcome.UNKNOWN, f"it did not start in time ({last.get('reason')}): {last.get('message')}"
        )
    pulling = any(event.get("reason") == "Pulling" for event in events)
    pulled = any(event.get("reason") == "Pulled" for event in events)
    what = (
        "its image was still being pulled" if pulling and not pulled else f"it is still {reason or 'waiting'}"
    )
    return Ended(Outcome.UNKNOWN, f"it did not start in time: {what}; raise EVERGREEN_PODS__STARTUP_MINUTES")


def _image(reason: str, message: str, events: Sequence[Json]) -> Ended:
    # "Back-off pulling image" hides why; the event about the pull before it says so.
    told = [event for event in events if "pull image" in str(event.get("message"))]
    text = " ".join([message, *(str(event["message"]) for event in sorted(told, key=_when)[-1:])]).strip()
    if reason != "InvalidImageName" and _passes(text):
        return Ended(
            Outcome.UNKNOWN,
            f"the registry did not give its image ({reason}): {text}; it is tried again, unless EVERGREEN_PODS__IMAGE "
            "names the wrong one: correct that",
        )
    return Ended(
        Outcome.REFUSED,
        f"there is no such image, or it may not be pulled ({reason}): {text}: correct EVERGREEN_PODS__IMAGE, or name "
        "EVERGREEN_PODS__IMAGE_PULL_SECRET",
    )


def _passes(message: str) -> bool:
    """Whether it sounds like somebody who was busy, or away."""
    return any(sign in message.lower() for sign in _PASSING)


def _forbidden(message: str) -> Ended:
    if "exceeded quota" in message:
        return Ended(Outcome.UNKNOWN, f"the namespace's quota leaves no room: {message}; it is tried again")
    if "violates PodSecurity" in message:
        return Ended(Outcome.REFUSED, f"{message}: what the template adds is not allowed in this namespace")
    if (
        "failed quota" in message
        or "must specify" in message
        or "LimitRange" in message
        or "usage per" in message
    ):
        return Ended(
            Outcome.REFUSED, f"{message}: set it in EVERGREEN_PODS__TEMPLATE, or change the model's resources"
        )
    if right := re.search(
        r'User "([^"]+)" cannot (\w+) resource "([^"]+)".*?(?:namespace "([^"]+)")?$', message
    ):
        user, verb, resource, namespace = right.groups()
        where = f" in namespace {namespace}" if namespace else ""
        return Ended(
            Outcome.REFUSED,
            f"{user} may not {verb} {resource}{where}: give it a Role with get, list, create and delete of pods, "
            "get of pods/log, and list of events",
        )
    return Ended(Outcome.REFUSED, f"the cluster forbids it: {message}")


def _message(body: str) -> str:
    try:
        found = json.loads(body or "")
    except ValueError:
        return body.strip()
    return str(found.get("message", "")) if isinstance(found, Mapping) else body.strip()


def _status(pod: Json) -> Json:
    return pod.get("status") or {}


def _state(pod: Json) -> Json:
    """Of the trainer's container; empty until a node has looked at it."""
    for container in _status(pod).get("containerStatuses") or ():
        if container.get("name") == CONTAINER:
            return {key: value for key, value in (container.get("state") or {}).items() if value is not None}
    return {}


def _terminated(pod: Json) -> Json | None:
    return _state(pod).get("terminated")


def _said(terminated: Json) -> str:
    """The container's last words, in one line that fits into a sentence."""
    lines = str(terminated.get("message") or "").strip().splitlines()
    return lines[-1].strip()[:500] if lines else ""


def _condition(pod: Json, of: str) -> Json | None:
    found = [condition for condition in _status(pod).get("conditions") or () if condition.get("type") == of]
    return found[0] if found else None


def _scheduled(pod: Json, now: datetime) -> datetime:
    condition = _condition(pod, "PodScheduled")
    return (
        _time(condition["lastTransitionTime"]) if condition and condition.get("lastTransitionTime") else now
    )


def _waits_since(pod: Json, now: datetime) -> datetime:
    condition = _condition(pod, "PodScheduled")
    if condition and condition.get("status") == "True" and condition.get("lastTransitionTime"):
        return _time(condition["lastTransitionTime"])
    created = pod["metadata"].get("creationTimestamp")
    return _time(created) if created else now


def _when(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or "")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
