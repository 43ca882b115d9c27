"""A model that the stack has trained in pods of the cluster that KUBECONFIG names."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kubernetes import client, config

from compose.conftest import STATE, LiveStack, outward_address
from evergreen.training.outcome import Outcome
from measuring.compose import docker
from support.relay import Address, Relay

pytestmark = [
    pytest.mark.compose,
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="KUBECONFIG names no cluster"),
]

IMAGE = os.environ.get("EVERGREEN_TEST_IMAGE", "evergreen-trainer:test")

NEWEST_ATTEMPT = """
from evergreen import storage
from evergreen.settings import settings
from evergreen.training.attempt import read_attempts

jobs = storage.storage_path(f"{settings().jobs}/flight_delay").iterdir()
attempts = [attempt for job in jobs if (job / "job.json").exists() for attempt in read_attempts(job)]
print(max(attempts, key=lambda attempt: attempt.started_at).model_dump_json())
"""


def test_a_retrain_whose_training_is_a_pod_ends_with_a_champion(stack: LiveStack, tmp_path: Path) -> None:
    config.load_kube_config()
    api = client.CoreV1Api()
    namespace = f"evergreen-stack-{uuid.uuid4().hex[:8]}"
    api.create_namespace({"metadata": {"name": namespace}})
    before = stack.python(STATE.read_text())
    try:
        with reached(stack, tmp_path / "kubeconfig") as (kubeconfig, s3):
            secret = {
                "AWS_ENDPOINT_URL": s3,
                "AWS_ACCESS_KEY_ID": "evergreen",
                "AWS_SECRET_ACCESS_KEY": stack.secrets()["S3_SECRET_KEY"],
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            api.create_namespaced_secret(namespace, {"metadata": {"name": "store"}, "stringData": secret})
            variables = {
                "TRAINING_KUBECONFIG": str(kubeconfig),
                "PODS_IMAGE": IMAGE,
                "PODS_NAMESPACE": namespace,
                "PODS_SECRET": "store",
            }
            stack.does("down")
            for command in (("up",), ("doctor",), ("retrain", "flight_delay")):
                code, said = stack.says(*command, **variables)
                assert code == 0, said
        trained = stack.python(NEWEST_ATTEMPT)
        assert trained["outcome"] == Outcome.SUCCEEDED.value
        events = api.list_namespaced_event(namespace).items
        assert trained["id"] in {event.involved_object.uid for event in events}
        after = stack.python(STATE.read_text())
        assert len(after["verdicts"]) == len(before["verdicts"]) + 1
        assert after["aliases"] == "right"
    finally:
        api.delete_namespace(namespace)
        stack.does("down")
        stack.does("up")  # as it was


@contextmanager
def reached(stack: LiveStack, kubeconfig: Path) -> Iterator[tuple[Path, str]]:
    """A kubeconfig for the stack's containers, and the address of the stack's S3 for pods.

    Clusters on this machine often listen on its loopback, where containers do not come; and the stack's S3 is for its
    own containers. So both get a port of this machine's outward address.
    """
    flat = ["kubectl", "config", "view", "--raw", "--flatten", "--minify", "--output", "json"]
    about = json.loads(subprocess.run(flat, check=True, capture_output=True, text=True).stdout)
    cluster = about["clusters"][0]["cluster"]
    server = urlsplit(cluster["server"])
    assert server.hostname
    api_server = (server.hostname, server.port or 443)

    def store() -> Address:  # at each start of the stack another one
        networks = docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", stack.container("s3"))
        return next(iter(json.loads(networks).values()))["IPAddress"], 8333

    outside = outward_address()
    with Relay(lambda: api_server, outside) as api, Relay(store, outside) as s3:
        cluster.update({"server": f"https://{api.address}", "tls-server-name": server.hostname})
        kubeconfig.write_text(json.dumps(about))  # which is YAML, too
        kubeconfig.chmod(0o644)  # who reads it is another user
        yield kubeconfig, f"http://{s3.address}"
