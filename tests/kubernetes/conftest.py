"""Pods that train the model `slow` in a namespace of their own, in a folder that they share with this machine."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from evergreen.spec import loader
from support.cluster import Cluster, Witness
from support.training_tasks import Trial, template, training_set
from support.waiting import eventually

IMAGE = os.environ.get("EVERGREEN_TEST_IMAGE", "evergreen-trainer:test")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share tests out one by one, but those of test_airflow.py together: they have a stack in common."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith("test_airflow.py") else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if "KUBECONFIG" not in os.environ:
        pytest.skip("KUBECONFIG names no cluster (docs/guides/kubernetes.md)")
    try:
        config.load_kube_config()
        api = client.CoreV1Api()
        api.list_node(_request_timeout=10)
    except (ConfigException, client.ApiException, HTTPError) as error:
        pytest.skip(f"the cluster that KUBECONFIG names does not answer: {error}")
    namespace = f"evergreen-tests-{uuid.uuid4().hex[:8]}"
    api.create_namespace({"metadata": {"name": namespace}})
    yield Cluster(api, namespace, IMAGE)
    api.delete_collection_namespaced_pod(namespace, grace_period_seconds=0)
    api.delete_namespace(namespace)


@pytest.fixture(scope="session")
def shared(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of Evergreen in these tests: a folder of this machine that pods see under the same path.

    The pod that tells whether they do stays: a node whose disk is nearly full throws images away that no pod uses.
    """
    before = os.umask(0)  # a trainer is another user, and writes beside what the task has written
    home = tmp_path_factory.mktemp("pods") / "home"
    home.mkdir()
    template(home / "template.yaml", home)
    probe: dict[str, Any] = {
        "metadata": {"name": "probe"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {"name": "probe", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                 "command": ["sh", "-c", f"touch {home}/seen; exec sleep 86400"],
                 "volumeMounts": [{"name": "home", "mountPath": str(home)}]}
            ],
            "volumes": [{"name": "home", "hostPath": {"path": str(home)}}],
        },
    }  # fmt: skip
    eventually("the new namespace takes pods", lambda: _is_made(cluster, probe))
    for _ in range(600):
        status = cluster.api.read_namespaced_pod("probe", cluster.namespace).status
        waiting = status.container_statuses and status.container_statuses[0].state.waiting
        if status.phase in ("Running", "Failed") or (waiting and "Pull" in waiting.reason):
            break
        time.sleep(0.1)
    if status.phase != "Running":
        pytest.fail(f"no pod can be made of {IMAGE} (docs/guides/kubernetes.md says how to build it): {status}")
    for _ in range(50):
        if (home / "seen").exists():
            break
        time.sleep(0.1)
    else:
        pytest.skip("the nodes of the cluster that KUBECONFIG names do not see folders of this machine")
    yield home
    os.umask(before)


def _is_made(cluster: Cluster, pod: dict[str, Any]) -> bool:
    try:
        cluster.api.create_namespaced_pod(cluster.namespace, pod)
    except client.ApiException as error:
        if error.status not in (403, 500):  # its service account, or that one's token, is still to come
            raise
        return False
    return True


@pytest.fixture(scope="session")
def witness(cluster: Cluster) -> Iterator[Witness]:
    found = Witness(cluster)
    found.start()
    yield found
    found.over.set()


@pytest.fixture
def _reserved_cpus(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A node has the CPUs that the pods of a test request: one, or those of its mark `cpus`."""
    mark = request.node.get_closest_marker("cpus")
    base = tmp_path_factory.getbasetemp()
    locks = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    drains_node = request.node.get_closest_marker("drains_node") is not None
    with cluster.reserve_cpus(mark.args[0] if mark else 1, locks, drains_node=drains_node):
        yield


@pytest.fixture(autouse=True)
def _one_at_a_time(request: pytest.FixtureRequest, _reserved_cpus: None) -> Iterator[None]:
    """Whatever a test does: never two live pods of a job, and none afterwards."""
    witness: Witness = request.getfixturevalue("witness")
    cluster = witness.cluster
    yield
    eventually("every pod is gone, or going", lambda: all(p.metadata.deletion_timestamp for p in cluster.pods()))
    for pod in cluster.pods():
        if not pod.status.container_statuses or not pod.status.container_statuses[0].state.running:
            cluster.delete(pod, grace=0)  # kubelets take their time with what never began
    eventually("no pod is left", lambda: not cluster.pods())
    assert not witness.twice, "two pods of one job were alive at once"


@pytest.fixture(params=[pytest.param("sync", marks=pytest.mark.slow), "deferrable"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    return request.param == "deferrable"


@pytest.fixture
def trial(
    cluster: Cluster, shared: Path, monkeypatch: pytest.MonkeyPatch, use_home: Callable[[Path], Path]
) -> Iterator[Callable[..., Trial]]:
    """Begins to train `slow`: `told` is the one row that it learns from, the rest are settings and resources.

    `of` is an earlier trial, whose job this is another try of.
    """
    started: list[Trial] = []

    def begin(
        *,
        deferrable: bool = False,
        watched: bool = True,
        of: Trial | None = None,
        resources: Mapping[str, Any] | None = None,
        pods: Mapping[str, Any] | None = None,
        **told: Any,
    ) -> Trial:
        values = {
            "image": cluster.image,
            "namespace": cluster.namespace,
            "template": shared / "template.yaml",
            "deferrable": deferrable,
            "startup_timeout_minutes": 2,  # other tests may be at the same node
            "logging_interval_seconds": 1,
            **(pods or {}),
        }
        monkeypatch.setenv("EVERGREEN_TRAINING_BACKEND", "pod")
        for name, value in values.items():
            monkeypatch.setenv(f"EVERGREEN_PODS__{name.upper()}", str(value))
        use_home(shared)
        spec = loader.load_spec("slow")
        if resources:
            spec = spec.model_copy(update={"resources": spec.resources.model_copy(update=dict(resources))})
            monkeypatch.setattr(loader, "load_spec", lambda _name, spec=spec: spec)
        started.append(Trial(spec, of.examples if of else training_set(spec, **told), watched))
        return started[-1]

    yield begin
    for one in started:
        one.join(60)
