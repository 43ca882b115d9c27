"""A Kubernetes cluster for tests: what is done to its pods, and a witness of how many there are at any moment."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes import client, watch
from kubernetes.utils.quantity import parse_quantity

from support.waiting import eventually

JOB = "evergreen/job"  # label


def _lock_one(files: list[Path], held: ExitStack) -> bool:
    """Lock one of `files` until `held` ends, if there is one that nobody has locked."""
    for file in files:
        with ExitStack() as opened, suppress(BlockingIOError):
            fcntl.flock(opened.enter_context(file.open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.push(opened.pop_all())
            return True
    return False


@dataclass
class Cluster:
    """One namespace of a cluster."""

    api: client.CoreV1Api
    namespace: str
    image: str

    def pod(self, name: str) -> client.V1Pod | None:
        try:
            return self.api.read_namespaced_pod(name, self.namespace)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise

    def pods(self) -> list[client.V1Pod]:
        return self.api.list_namespaced_pod(self.namespace, label_selector=JOB).items

    def made(self, name: str, after: client.V1Pod | None = None) -> client.V1Pod:
        """The pod of this name, once there is one that is not `after`."""

        def found() -> client.V1Pod | None:
            pod = self.pod(name)
            return pod if pod and (after is None or pod.metadata.uid != after.metadata.uid) else None

        return eventually(f"pod {name} is made", found)

    def at_work(self, name: str, after: client.V1Pod | None, step: int) -> tuple[client.V1Pod, int]:
        """The pod that comes `after`, once its trainer has done `step`; and the step that it has done."""
        self.made(name, after)
        done = eventually(f"step {step} is done", lambda: (done := self.step(name)) >= step and done)
        return self.made(name, after), done

    def step(self, name: str) -> int:
        """The last step that the trainer in this pod has told of; 0 before the first."""
        try:
            log = self.api.read_namespaced_pod_log(name, self.namespace, tail_lines=5, _preload_content=False)
        except client.ApiException:
            return 0
        steps = [line.split()[1] for line in log.data.decode().splitlines() if line.startswith("step ")]
        return int(steps[-1]) if steps else 0

    def delete(self, pod: client.V1Pod, grace: int | None = None) -> None:
        options = client.V1DeleteOptions(
            preconditions=client.V1Preconditions(uid=pod.metadata.uid), grace_period_seconds=grace
        )
        self.api.delete_namespaced_pod(pod.metadata.name, self.namespace, body=options)

    @contextmanager
    def reserve_cpus(self, cpus: int, locks: Path, *, drains_node: bool = False) -> Iterator[None]:
        """Wait until one node has `cpus` CPUs free, and keep them from other tests that use `locks` until the end.

        A test that waits for several CPUs is not overtaken by tests that want one. A test that drains a node runs
        alone: meanwhile no pod of others would find a node, and Kubernetes would name the wrong reason.
        """
        with ExitStack() as held:
            with (locks / "queue").open("w") as queue:
                fcntl.flock(queue, fcntl.LOCK_EX)
                nodes = held.enter_context((locks / "nodes").open("w"))
                fcntl.flock(nodes, fcntl.LOCK_EX if drains_node else fcntl.LOCK_SH)
                shares = [locks / f"cpu-{number}" for number in range(int(sum(self._cpus().values())))]
                assert len(shares) >= cpus, f"{cpus} CPUs are needed, and the cluster has {len(shares)}"
                for _ in range(cpus):
                    eventually("another test ends", lambda: _lock_one(shares, held), 600)
                eventually(f"one node has {cpus} CPUs free", lambda: max(self._free_cpus().values()) >= cpus)
            yield

    def _cpus(self) -> dict[str, float]:
        """CPUs of each node that takes pods."""
        return {
            node.metadata.name: float(parse_quantity(node.status.allocatable["cpu"]))
            for node in self.api.list_node().items
            if not node.spec.unschedulable and not any(t.effect != "PreferNoSchedule" for t in node.spec.taints or ())
        }

    def _free_cpus(self) -> dict[str, float]:
        """Those that no live pod of any namespace has requested."""
        free = self._cpus()
        live = "status.phase!=Succeeded,status.phase!=Failed"
        for pod in self.api.list_pod_for_all_namespaces(field_selector=live).items:
            for container in pod.spec.containers if pod.spec.node_name in free else ():
                requests = (container.resources and container.resources.requests) or {}
                free[pod.spec.node_name] -= float(parse_quantity(requests.get("cpu", 0)))
        return free

    def evict(self, pod: client.V1Pod) -> None:
        """What `kubectl drain` does to each pod of a node."""
        # Older servers know the eviction only by its beta name; every client serves both.
        for version in ("policy/v1", "policy/v1beta1"):
            eviction = {
                "apiVersion": version,
                "kind": "Eviction",
                "metadata": {"name": pod.metadata.name, "namespace": self.namespace},
            }
            try:
                self.api.create_namespaced_pod_eviction(pod.metadata.name, self.namespace, eviction)
                return
            except client.ApiException as error:
                if error.status not in (400, 404) or version == "policy/v1beta1":
                    raise

    @contextmanager
    def drained(self, pod: client.V1Pod) -> Iterator[None]:
        """The pod's node takes no pods, and gives this one back, until the context ends."""
        node = pod.spec.node_name
        self.api.patch_node(node, {"spec": {"unschedulable": True}})
        try:
            self.evict(pod)
            yield
        finally:
            self.api.patch_node(node, {"spec": {"unschedulable": None}})


@dataclass
class Witness(threading.Thread):
    """Sees every change of the trainers' pods, and remembers when two of one job were alive."""

    cluster: Cluster
    alive: dict[str, dict[str, str]] = field(default_factory=dict)  # job → uid → phase
    seen: dict[str, list[str]] = field(default_factory=dict)  # job → uids, in order
    twice: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        api = client.CoreV1Api(client.ApiClient())  # a connection of its own
        while not self.over.is_set():
            try:
                stream = watch.Watch().stream(
                    api.list_namespaced_pod, self.cluster.namespace, label_selector=JOB, timeout_seconds=5
                )
                for event in stream:
                    self._note(event["type"], event["object"])
            except client.ApiException:
                time.sleep(0.2)

    def _note(self, kind: str, pod: client.V1Pod) -> None:
        job, uid, phase = pod.metadata.labels[JOB], pod.metadata.uid, pod.status.phase
        if uid not in self.seen.setdefault(job, []):
            self.seen[job].append(uid)
        alive = self.alive.setdefault(job, {})
        if kind == "DELETED" or phase in ("Succeeded", "Failed"):
            alive.pop(uid, None)
        else:
            alive[uid] = phase
        if len(alive) > 1:
            self.twice.append(f"{job}: {alive}")
