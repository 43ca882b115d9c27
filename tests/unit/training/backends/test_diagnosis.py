"""Diagnosis of pods. The JSON is that of a kubelet of 1.20, and of a current one where that differs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evergreen.training.backends import diagnosis
from evergreen.training.outcome import Outcome

pytestmark = pytest.mark.unit

SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
NOW = datetime(2026, 1, 1, 0, 5, tzinfo=UTC)
RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def pod(
    phase: str = "Running",
    state: dict[str, Any] | None = None,
    conditions: tuple[Any, ...] = (SCHEDULED,),
    **status: Any,
) -> dict[str, Any]:
    containers = {"containerStatuses": [{"name": "trainer", "state": state}]} if state else {}
    return {
        "metadata": {"name": "slow-0123"},
        "spec": {
            "nodeName": "node1",
            "activeDeadlineSeconds": 5400,
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100"},
        },
        "status": {"phase": phase, "conditions": list(conditions), **containers, **status},
    }


def terminating(manifest: dict[str, Any], at: datetime = NOW) -> dict[str, Any]:
    manifest["metadata"]["deletionTimestamp"] = at.isoformat().replace("+00:00", "Z")
    return manifest


def terminated(code: int, message: str | None = None, reason: str = "Error") -> dict[str, Any]:
    texts = {} if message is None else {"message": message}
    return pod("Succeeded" if code == 0 else "Failed", {"terminated": {"exitCode": code, "reason": reason, **texts}})


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod("Pending", {"waiting": {"reason": reason, "message": message}})


def init_container(phase: str = "Pending", sidecar: dict[str, Any] | None = None, **state: Any) -> dict[str, Any]:
    """A pod whose trainer waits for `fetch`, and that has a sidecar."""
    manifest = pod(phase, {"waiting": {"reason": "PodInitializing"}})
    manifest["spec"]["initContainers"] = [{"name": "proxy", "restartPolicy": "Always"}, {"name": "fetch"}]
    states = {"proxy": sidecar or RUNNING, "fetch": state}
    manifest["status"]["initContainerStatuses"] = [{"name": name, "state": each} for name, each in states.items()]
    return manifest


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod("Pending", conditions=(condition,))


TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 1, in <module>\nRuntimeError: boom\n'


@pytest.mark.parametrize(
    ("manifest", "outcome", "message"),
    [
        (None, Outcome.PREEMPTED, "its pod is gone"),
        # Exit codes of the trainer.
        (terminated(0, reason="Completed"), Outcome.SUCCEEDED, ""),
        (terminated(65, "no rows"), Outcome.BAD_DATA, "no rows"),
        (terminated(70, "KeyError: 'a'"), Outcome.BAD_CODE, "KeyError: 'a'"),
        (terminated(71, "CUDA out of memory"), Outcome.OUT_OF_MEMORY, "CUDA out of memory"),
        (terminated(75, "asked to leave, after step 12"), Outcome.PREEMPTED, "after step 12"),
        (terminated(143), Outcome.PREEMPTED, "asked to leave"),
        (terminated(78, "no training job can be read"), Outcome.BAD_CONFIG, "no training job"),
        (terminated(1, TRACEBACK), Outcome.UNKNOWN, "exit code 1: RuntimeError: boom"),
        (terminated(65), Outcome.BAD_DATA, "exit code 65 and wrote no message"),
        (terminated(139), Outcome.UNKNOWN, "exit code 139: it wrote no message"),
        (terminated(137), Outcome.UNKNOWN, "SIGKILL"),
        (terminated(135), Outcome.OUT_OF_MEMORY, "raise resources.shm_gib"),
        (terminating(terminated(135)), Outcome.PREEMPTED, "its pod was deleted"),
        # The outcome of the trainer itself counts, whatever happened to the pod meanwhile.
        (terminating(terminated(65, "no rows")), Outcome.BAD_DATA, "no rows"),
        (terminating(terminated(0)), Outcome.SUCCEEDED, ""),
        # Memory.
        (terminated(137, reason="OOMKilled"), Outcome.OUT_OF_MEMORY, "raise resources.memory_gib"),
        (
            pod("Failed", reason="Evicted", message='Usage of EmptyDir volume "shm" exceeds the limit "20Mi". '),
            Outcome.OUT_OF_MEMORY,
            "raise resources.shm_gib",
        ),
        (
            pod("Failed", reason="Evicted", message='Usage of EmptyDir volume "tmp" exceeds the limit "20Mi". '),
            Outcome.OUT_OF_MEMORY,
            "it filled its volume 'tmp' (20Mi) and was evicted: give volume 'tmp' more in the template",
        ),
        (
            pod("Failed", reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit of "
                "containers 1Gi. "),
            Outcome.OUT_OF_MEMORY,
            "raise that limit in EVERGREEN_PODS__TEMPLATE",
        ),
        # Evicted, or the node is gone.
        (
            pod("Failed", reason="Evicted", message="The node was low on resource: memory. Container trainer was using "
                "3Gi, which exceeds its request of 2Gi. "),
            Outcome.PREEMPTED,
            "its node ran out of memory",
        ),
        (
            pod("Failed", reason="Evicted", message="The node was low on resource: [DiskPressure]. "),
            Outcome.PREEMPTED,
            "its node ran out of DiskPressure",
        ),
        (pod("Failed", reason="Evicted", message="Pod was evicted"), Outcome.PREEMPTED, "Pod was evicted"),
        (
            pod("Failed", reason="Terminated", message="Pod was terminated in response to imminent node shutdown."),
            Outcome.PREEMPTED,
            "its node was taken away (Terminated): Pod was terminated in response to imminent node shutdown.",
        ),
        (pod("Failed", reason="Shutdown", message="Node is shutting"), Outcome.PREEMPTED, "its node was taken away"),
        (pod("Failed", reason="NodeLost", message="Node node1 lost"), Outcome.PREEMPTED, "its node was taken away"),
        (pod("Failed", reason="Preempting", message="Preempted in order to admit critical pod"), Outcome.PREEMPTED,
         "higher priority"),
        (
            pod("Failed", conditions=({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                "message": "default-scheduler: preempting to accommodate a higher priority pod"},)),
            Outcome.PREEMPTED,
            "it made room for a pod of higher priority",
        ),
        (
            pod("Failed", conditions=({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting"},)),
            Outcome.PREEMPTED,
            "its node is drained",
        ),
        (
            pod("Failed", {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}),
            Outcome.PREEMPTED,
            "lost sight of it",
        ),
        (terminating(pod("Running", RUNNING)), Outcome.PREEMPTED, "its pod was deleted, or its node drained"),
        (terminating(waiting("ContainerCreating")), Outcome.PREEMPTED, "its pod was deleted"),
        (terminating(terminated(75, "left after step 12")), Outcome.PREEMPTED, "(left after step 12)"),
        (terminating(terminated(137)), Outcome.PREEMPTED, "its pod was deleted"),
        # Too long.
        (
            # A kubelet before 1.22 leaves the container running in what it says.
            pod("Failed", RUNNING, reason="DeadlineExceeded", message="Pod was active on the node longer than the "
                "specified deadline"),
            Outcome.UNKNOWN,
            "it took longer than resources.timeout_minutes, 90",
        ),
        (
            pod("Failed", {"terminated": {"exitCode": 75, "reason": "Error"}}, reason="DeadlineExceeded"),
            Outcome.UNKNOWN,
            "it took longer than resources.timeout_minutes, 90",
        ),
        # Rejected by the node.
        (pod("Failed", reason="OutOfnvidia.com/gpu", message="Node didn't have enough resource"), Outcome.UNKNOWN,
         "had no room after all"),
        (pod("Failed", reason="UnexpectedAdmissionError", message="no healthy devices"), Outcome.UNKNOWN, "no healthy"),
        (pod("Failed", reason="SomethingNew", message="of tomorrow"), Outcome.UNKNOWN, "SomethingNew: of tomorrow"),
        # It did not start.
        (
            terminated(128, 'runc create failed: exec: "python": executable file not found in $PATH', "StartError"),
            Outcome.BAD_CONFIG,
            "the image cannot run a trainer",
        ),
        (waiting("CreateContainerConfigError", 'secret "store" not found'), Outcome.BAD_CONFIG,
         'secret "store" not found'),
        (
            waiting("CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition"),
            Outcome.UNKNOWN,
            "timed out",
        ),
        (waiting("CreateContainerError", "context deadline exceeded"), Outcome.UNKNOWN, "could not be made"),
        (waiting("InvalidImageName", "couldn't parse image reference"), Outcome.BAD_CONFIG, "EVERGREEN_PODS__IMAGE"),
        (waiting("ErrImagePull", 'manifest for trainer:1 not found: manifest unknown'), Outcome.BAD_CONFIG,
         "no such image"),
        (waiting("ErrImagePull", "pull access denied, repository does not exist"), Outcome.BAD_CONFIG,
         "IMAGE_PULL_SECRET"),
        (waiting("ErrImagePull", "toomanyrequests: You have reached your pull rate limit"), Outcome.UNKNOWN,
         "registry"),
        (waiting("ErrImagePull", "dial tcp: lookup registry: no such host"), Outcome.UNKNOWN, "tried again"),
        (waiting("ImagePullBackOff", 'Back-off pulling image "a"'), Outcome.BAD_CONFIG, "no such image"),
        (waiting("ContainerCreating"), Outcome.UNKNOWN, "raise EVERGREEN_PODS__STARTUP_TIMEOUT_MINUTES"),
        (unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."), Outcome.UNKNOWN, "no GPU is free"),
        (
            unscheduled("0/3 nodes are available: 1 Insufficient cpu, 3 Insufficient memory."),
            Outcome.UNKNOWN,
            "no node has resources.cpu free; no node has the memory free",
        ),
        (
            unscheduled("0/1 nodes are available: 1 node(s) didn't match node selector."),
            Outcome.UNKNOWN,
            "no node is labelled nvidia.com/gpu.product=NVIDIA-H100",
        ),
        (
            unscheduled("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: "
                        "0/1 nodes are available: 1 Preemption is not helpful for scheduling."),
            Outcome.UNKNOWN,
            "no node is labelled nvidia.com/gpu.product=NVIDIA-H100",
        ),
        (
            unscheduled("0/2 nodes are available: 2 node(s) had untolerated taint {spot: true}."),
            Outcome.UNKNOWN,
            "nodes are kept for pods that tolerate spot: true",
        ),
        (
            unscheduled("0/1 nodes are available: 1 node(s) had taint {spot: true}, that the pod didn't tolerate."),
            Outcome.UNKNOWN,
            "nodes are kept for pods that tolerate spot: true",
        ),
        (unscheduled("0/1 nodes are available: 1 node(s) were unschedulable."), Outcome.UNKNOWN, "cordoned"),
        (unscheduled("something new"), Outcome.UNKNOWN, "the scheduler gives no reason (something new)"),
        (pod("Pending", conditions=()), Outcome.UNKNOWN, "it did not start in time"),
        # What the template runs first.
        (
            init_container("Failed", terminated={"exitCode": 3, "reason": "Error", "message": "a\nno such bucket\n"}),
            Outcome.UNKNOWN,
            "init container 'fetch' of EVERGREEN_PODS__TEMPLATE ended with exit code 3, so training did not begin: "
            "no such bucket",
        ),
        (
            init_container("Failed", terminated={"exitCode": 1, "reason": "Error"}),
            Outcome.UNKNOWN,
            "it wrote no message; see its log",
        ),
        (
            init_container("Failed", terminated={"exitCode": 137, "reason": "OOMKilled"}),
            Outcome.OUT_OF_MEMORY,
            "init container 'fetch' of EVERGREEN_PODS__TEMPLATE used more memory than it has (OOMKilled)",
        ),
        (
            init_container("Failed", terminated={"exitCode": 128, "reason": "StartError", "message": "no sh in $PATH"}),
            Outcome.BAD_CONFIG,
            "cannot run: no sh in $PATH: correct its command or image",
        ),
        (
            init_container(waiting={"reason": "ErrImageNeverPull", "message": 'image "fetch:1" is not present'}),
            Outcome.BAD_CONFIG,
            'image "fetch:1" is not present',
        ),
        (init_container(**RUNNING), Outcome.UNKNOWN, "it is still waiting for init container 'fetch'"),
        (
            init_container(sidecar={"waiting": {"reason": "CrashLoopBackOff"}}, terminated={"exitCode": 0}),
            Outcome.UNKNOWN,
            "it is still CrashLoopBackOff",
        ),
        (init_container(terminated={"exitCode": 0}), Outcome.UNKNOWN, "it is still PodInitializing"),
        # Nobody waits any longer.
        (pod("Running", RUNNING), Outcome.UNKNOWN, "its pod was left Running"),
    ],
)  # fmt: skip
def test_diagnose_pod(manifest: dict[str, Any] | None, outcome: Outcome, message: str) -> None:
    result = diagnosis.diagnose_pod(manifest)
    assert result.outcome is outcome
    assert message in result.message
    assert "None" not in result.message


def event(reason: str, message: str, at: str, kind: str = "Warning") -> dict[str, Any]:
    return {"type": kind, "reason": reason, "message": message, "lastTimestamp": f"2026-01-01T00:00:{at}Z"}


def test_event_gives_the_cause_of_a_failed_image_pull() -> None:
    events = [
        event("BackOff", 'Back-off pulling image "a"', "03", "Normal"),
        event("Failed", 'Failed to pull image "a": 503 Service Unavailable', "02"),
        event("Failed", "Error: ImagePullBackOff", "04"),
    ]
    result = diagnosis.diagnose_pod(waiting("ImagePullBackOff", 'Back-off pulling image "a"'), events)
    assert result.outcome is Outcome.UNKNOWN
    assert "503 Service Unavailable" in result.message


def test_failed_event_is_preferred_to_other_warnings() -> None:
    events = [
        event("FailedMount", 'MountVolume.SetUp failed for volume "data"', "01"),
        event("MissingClusterDNS", "kubelet does not have ClusterDNS", "09"),
    ]
    assert "MountVolume.SetUp failed" in diagnosis.diagnose_pod(waiting("ContainerCreating"), events).message


def test_slow_image_pull_is_named() -> None:
    pulling = [event("Pulling", 'Pulling image "a"', "01", "Normal")]
    assert "still being pulled" in diagnosis.diagnose_pod(waiting("ContainerCreating"), pulling).message
    pulled = [*pulling, event("Pulled", "Successfully pulled", "02", "Normal")]
    assert "still being pulled" not in diagnosis.diagnose_pod(waiting("ContainerCreating"), pulled).message


class TestUnrecoverablePod:
    """Pods that Kubernetes would wait for without end."""

    def test_node_that_is_cut_off(self) -> None:
        manifest = terminating(pod("Running", RUNNING), NOW - timedelta(minutes=2))
        result = diagnosis.diagnose_unrecoverable_pod(manifest, NOW)
        assert result is not None
        assert result.outcome is Outcome.UNKNOWN
        assert "node node1 does not say that it is" in result.message
        assert "kubectl delete node node1" in result.message

    def test_container_that_cannot_be_created(self) -> None:
        manifest = waiting("CreateContainerConfigError", 'secret "store" not found')
        result = diagnosis.diagnose_unrecoverable_pod(manifest, NOW)
        assert result is not None
        assert result.outcome is Outcome.BAD_CONFIG
        assert diagnosis.diagnose_unrecoverable_pod(manifest, NOW - timedelta(minutes=4, seconds=30)) is None, (
            "it may be created in a moment"
        )

    def test_other_pods_are_recoverable(self) -> None:
        for manifest in (
            pod("Running", RUNNING),
            terminating(pod("Running", RUNNING), NOW),
            waiting("ContainerCreating"),
            waiting("ImagePullBackOff"),
            unscheduled("0/1 nodes are available"),
        ):
            assert diagnosis.diagnose_unrecoverable_pod(manifest, NOW) is None


class TestIsWaitOver:
    STARTUP = timedelta(minutes=4)

    def is_over(self, manifest: dict[str, Any], at: datetime = NOW) -> bool:
        return diagnosis.is_wait_over(manifest, self.STARTUP, at)

    def test_pod_that_is_over(self) -> None:
        assert self.is_over(terminated(0))
        assert self.is_over(terminated(1))

    def test_pod_that_runs(self) -> None:
        assert not self.is_over(pod("Running", RUNNING), NOW + timedelta(days=1))

    def test_container_that_ended_beside_a_sidecar(self) -> None:
        finished = {"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T00:05:00Z"}}
        assert not self.is_over(pod("Running", finished), NOW)
        assert self.is_over(pod("Running", finished), NOW + timedelta(seconds=11))

    def test_container_that_does_not_start(self) -> None:
        manifest = waiting("ContainerCreating")  # since 00:00, when it was scheduled
        manifest["metadata"]["creationTimestamp"] = "2025-12-31T23:00:00Z"
        assert self.is_over(manifest)
        assert not self.is_over(manifest, NOW - timedelta(minutes=1))

    def test_pod_that_no_node_takes(self) -> None:
        manifest = unscheduled("0/1 nodes are available")
        assert not self.is_over(manifest)
        manifest["metadata"]["creationTimestamp"] = "2026-01-01T00:00:30Z"
        assert self.is_over(manifest)
        assert not self.is_over(manifest, NOW - timedelta(minutes=1))

    def test_pod_without_hope(self) -> None:
        assert self.is_over(waiting("InvalidImageName"), NOW - timedelta(minutes=3))
        assert self.is_over(init_container(waiting={"reason": "InvalidImageName"}), NOW - timedelta(minutes=3))


def status(code: int, message: str) -> tuple[int, str]:
    return code, json.dumps({"kind": "Status", "code": code, "message": message})


NOBODY = 'pods is forbidden: User "system:serviceaccount:ml:nobody" cannot create resource "pods" in API group ""'


@pytest.mark.parametrize(
    ("response", "outcome", "message"),
    [
        (status(403, f'{NOBODY} in the namespace "ml"'), Outcome.BAD_CONFIG,
         "system:serviceaccount:ml:nobody may not create pods in namespace ml: give it a Role"),
        (status(403, 'pods "a" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: '
                     "requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"), Outcome.UNKNOWN,
         "the namespace's quota leaves no room: "),
        (status(403, 'pods "a" is forbidden: failed quota: all: must specify limits.cpu'), Outcome.BAD_CONFIG,
         "set it in EVERGREEN_PODS__TEMPLATE"),
        (status(403, 'pods "a" is forbidden: maximum memory usage per Container is 1Gi, but limit is 4Gi'),
         Outcome.BAD_CONFIG, "change the model's resources"),
        (status(403, 'pods "a" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes'),
         Outcome.BAD_CONFIG, "what the template adds is not allowed"),
        (status(403, "admission webhook denied the request"), Outcome.BAD_CONFIG, "forbids it"),
        (status(401, "Unauthorized"), Outcome.BAD_CONFIG, "EVERGREEN_PODS__CONNECTION"),
        (status(404, 'namespaces "ml" not found'), Outcome.BAD_CONFIG, "EVERGREEN_PODS__NAMESPACE"),
        (status(422, 'Pod "a" is invalid: spec.containers[0].image: Required value'), Outcome.BAD_CONFIG,
         "the cluster rejects the pod"),
        (status(500, "etcd leader changed"), Outcome.UNKNOWN, "the cluster responded 500: etcd leader changed"),
        (status(429, "too many requests"), Outcome.UNKNOWN, "429"),
        ((503, "<html>no json</html>"), Outcome.UNKNOWN, "<html>no json</html>"),
        ((None, ""), Outcome.UNKNOWN, "the cluster cannot be reached: Connection refused"),
    ],
)  # fmt: skip
def test_diagnose_api_error(response: tuple[int | None, str], outcome: Outcome, message: str) -> None:
    result = diagnosis.diagnose_api_error(*response, "Connection refused")
    assert result.outcome is outcome
    assert message in result.message
