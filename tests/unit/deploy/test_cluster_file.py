"""Invariants of deploy/kubernetes/stack.yaml."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from evergreen.settings import ENV_PREFIX, REPOSITORY, Settings, variable_name

pytestmark = pytest.mark.unit

TEXT = (REPOSITORY / "deploy/kubernetes/stack.yaml").read_text()
ITEMS: list[dict[str, Any]] = yaml.safe_load(TEXT)["items"]
CONFIG = {item["metadata"]["name"]: item["data"] for item in ITEMS if item["kind"] == "ConfigMap"}
PODS: dict[str, dict[str, Any]] = {
    **{
        item["metadata"]["name"]: item["spec"]["template"]["spec"]
        for item in ITEMS
        if "template" in item.get("spec", {})
    },
    "task": yaml.safe_load(CONFIG["task-pod"]["pod.yaml"])["spec"],
}
OURS = {name: pod for name, pod in PODS.items() if pod["containers"][0]["image"] == "evergreen:stack"}
SCRIPT = (REPOSITORY / "deploy/cluster").read_text()


def secrets_of(name: str) -> set[str]:
    [container] = PODS[name]["containers"]
    from_whole = {source["secretRef"]["name"] for source in container.get("envFrom", ()) if "secretRef" in source}
    keys = (variable.get("valueFrom", {}).get("secretKeyRef") for variable in container.get("env", ()))
    mounted = {volume["secret"]["secretName"] for volume in PODS[name].get("volumes", ()) if "secret" in volume}
    return from_whole | mounted | {key["name"] for key in keys if key}


def test_pods_have_the_secrets_that_they_need_only() -> None:
    assert {name: secrets_of(name) for name in PODS} == {
        "postgres": {"postgres"},
        "redis": {"redis"},
        "s3": {"s3"},
        "migrate": {"evergreen", "airflow", "mlflow"},
        "mlflow": {"mlflow"},
        "api-server": {"evergreen", "airflow", "login"},
        "scheduler": {"evergreen", "airflow"},
        "dag-processor": {"evergreen", "airflow"},
        "triggerer": {"evergreen", "airflow"},
        "task": {"evergreen"},
    }


def test_secrets_are_written_by_up_and_by_nobody_else() -> None:
    assert "Secret" not in {item["kind"] for item in ITEMS}
    written = set(re.findall(r"kind: Secret, metadata: \{name: ([\w-]+)\}", SCRIPT))
    assert written == set().union(*map(secrets_of, PODS))
    names = [key for data in CONFIG.values() for key in data]
    assert not [name for name in names if re.search("PASSWORD|SECRET|TOKEN|FERNET|JWT", name)]


@pytest.mark.parametrize("name", PODS)
def test_only_who_starts_or_shows_pods_has_a_token_of_the_cluster(name: str) -> None:
    assert PODS[name]["automountServiceAccountToken"] is (name in ("scheduler", "api-server"))


@pytest.mark.parametrize("name", OURS)
def test_what_is_ours_meets_the_restricted_standard(name: str) -> None:
    pod = OURS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("name", PODS)
def test_images_are_pinned_and_memory_is_limited(name: str) -> None:
    for container in PODS[name]["containers"]:
        assert ":" in container["image"]
        assert not container["image"].endswith(":latest")
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", PODS)
def test_names_of_services_are_no_settings(name: str) -> None:
    assert PODS[name]["enableServiceLinks"] is False


def test_no_volume_is_shared() -> None:
    claims = [item for item in ITEMS if item["kind"] == "PersistentVolumeClaim"]
    assert not claims
    kinds = {kind for pod in OURS.values() for volume in pod.get("volumes", ()) for kind in volume if kind != "name"}
    assert kinds == {"configMap", "emptyDir"}


def test_every_evergreen_variable_is_a_setting() -> None:
    names = set(re.findall(rf"\b{ENV_PREFIX}\w+", TEXT + SCRIPT))
    assert names <= {variable_name(name) for name in Settings.model_fields}


def test_waits_for_everything_that_runs() -> None:
    match = re.search(r"for part in statefulset/\{([^}]*)\} deployment/\{([^}]*)\}", SCRIPT)
    assert match
    kinds = {
        kind: [item["metadata"]["name"] for item in ITEMS if item["kind"] == kind]
        for kind in ("StatefulSet", "Deployment")
    }
    assert [group.split(",") for group in match.groups()] == [kinds["StatefulSet"], kinds["Deployment"]]
