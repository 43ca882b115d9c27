"""What is asked for cannot be had: a clear sentence within the time that a start may take, and no pod is left."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from evergreen.errors import EvergreenError
from evergreen.training.outcome import RetryableTrainingError
from support.cluster import Cluster
from support.training_tasks import Trial, expected
from support.waiting import eventually

pytestmark = pytest.mark.kubernetes

NEVER, LATER = EvergreenError, RetryableTrainingError
STARTUP_S = 8


def fails(job: Trial, kind: type[Exception], says: str) -> None:
    began = time.monotonic()
    error = job.error()
    assert isinstance(error, kind), error
    assert re.search(says, str(error)), error
    assert time.monotonic() - began < 2 * STARTUP_S


Begin = Callable[..., Trial]


@pytest.fixture
def begin(trial: Callable[..., Trial]) -> Begin:
    def begun(resources: dict[str, Any] | None = None, deferrable: bool = False, **pods: Any) -> Trial:
        settings = {"startup_timeout_minutes": STARTUP_S / 60, **pods}
        return trial(deferrable=deferrable, resources=resources, pods=settings)

    return begun


def test_no_such_image(begin: Begin, deferrable: bool) -> None:
    job = begin(deferrable=deferrable, image="nowhere.invalid/trainer:1")
    fails(job, LATER, "did not give its image .*EVERGREEN_PODS__IMAGE")


def test_no_name_of_an_image(begin: Begin) -> None:
    fails(begin(image="No//Image"), NEVER, "no such image.*InvalidImageName.*EVERGREEN_PODS__IMAGE")


@pytest.mark.cpus(0)
def test_no_such_gpu(begin: Begin, deferrable: bool) -> None:
    job = begin(deferrable=deferrable, resources={"gpu": 1, "gpu_type": "NVIDIA-H9000"})
    fails(job, LATER, "no node is labelled nvidia.com/gpu.product=NVIDIA-H9000")


@pytest.mark.cpus(0)
def test_no_gpu_free(begin: Begin) -> None:
    fails(begin(resources={"gpu": 64}), LATER, "no GPU is free")


def test_no_such_secret(begin: Begin, deferrable: bool) -> None:
    job = begin(deferrable=deferrable, secret="nosuch")
    fails(job, NEVER, 'secret "nosuch" not found: .*EVERGREEN_PODS__SECRET')


@pytest.mark.cpus(0)
def test_no_such_namespace(begin: Begin) -> None:
    fails(begin(namespace="nosuch"), NEVER, 'namespaces "nosuch" not found: .*EVERGREEN_PODS__NAMESPACE')


@pytest.mark.cpus(0)
def test_no_room_in_the_quota(begin: Begin, cluster: Cluster) -> None:
    none = {"metadata": {"name": "none"}, "spec": {"hard": {"requests.memory": "1Mi"}}}
    cluster.api.create_namespaced_resource_quota(cluster.namespace, none)
    eventually(
        "the quota holds",
        lambda: cluster.api.read_namespaced_resource_quota("none", cluster.namespace).status.hard,
    )
    try:
        fails(begin(), LATER, "the namespace's quota leaves no room: .*exceeded quota: none")
    finally:
        cluster.api.delete_namespaced_resource_quota("none", cluster.namespace)


@pytest.fixture
def nobody(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An Airflow connection of somebody who is known, and may nothing."""
    cluster.api.create_namespaced_service_account(cluster.namespace, {"metadata": {"name": "nobody"}})
    token = cluster.api.create_namespaced_service_account_token(
        "nobody", cluster.namespace, {"spec": {"audiences": [], "expirationSeconds": 600}}
    ).status.token
    here = cluster.api.api_client.configuration
    kube_config = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "nobody"}}],
        "clusters": [{"name": "it", "cluster": {"server": here.host, "certificate-authority": here.ssl_ca_cert}}],
        "users": [{"name": "nobody", "user": {"token": token}}],
    }
    connection = {"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(kube_config)}}
    monkeypatch.setenv("AIRFLOW_CONN_NOBODY", json.dumps(connection))
    yield "nobody"
    cluster.api.delete_namespaced_service_account("nobody", cluster.namespace)


@pytest.mark.cpus(0)
def test_no_permission(begin: Begin, nobody: str, cluster: Cluster) -> None:
    says = f":{cluster.namespace}:nobody may not get pods in namespace {cluster.namespace}: give it a Role"
    fails(begin(connection=nobody), NEVER, says)


@pytest.mark.cpus(0)
def test_no_such_connection(begin: Begin) -> None:
    fails(begin(connection="nosuch"), NEVER, "nosuch.*EVERGREEN_PODS__CONNECTION")


@pytest.mark.cpus(0)
def test_the_cluster_does_not_answer(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    kube_config = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "it", "user": {"token": "none"}}],
    }
    connection = {"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(kube_config)}}
    monkeypatch.setenv("AIRFLOW_CONN_SILENT", json.dumps(connection))
    job = begin(connection="silent")
    error = job.error()
    assert isinstance(error, LATER)
    assert "the cluster cannot be reached" in str(error)


def test_a_pod_of_another_installation(begin: Begin, cluster: Cluster) -> None:
    """Two that share a namespace may have the same job: the second must not take the first one's pod for its own."""
    job = begin()
    cluster.made(job.pod)
    theirs = {"metadata": {"annotations": {"evergreen/job": "s3://other/job.json"}}}
    cluster.api.patch_namespaced_pod(job.pod, cluster.namespace, theirs)
    fails(job.again(), NEVER, "works on s3://other/job.json, .*EVERGREEN_PODS__NAMESPACE")
    assert job.value() == expected(30)
