"""The check of Kubernetes: permissions, a secret, no cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evergreen.cli.doctor import cluster
from evergreen.settings import PodSettings
from integration.cli.doctor.conftest import FakeServer
from support.checks import failure

pytestmark = pytest.mark.integration

REVIEW = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
PODS = PodSettings(image="trainer@sha256:0", namespace="ml", secret="store")


@pytest.fixture
def kubernetes(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """An API server that grants all permissions, and its KUBECONFIG."""
    denied: set[tuple[str, str]] = set()

    def review(body: bytes) -> tuple[int, object]:
        attributes = json.loads(body)["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, [attributes["resource"], attributes["subresource"]]))
        assert attributes["namespace"] == "ml"
        return 201, {"spec": {}, "status": {"allowed": (resource, attributes["verb"]) not in denied}}

    server.denied = denied  # type: ignore[attr-defined]
    server.responses = {
        "GET /version/": (
            200,
            dict.fromkeys(
                (
                    "major",
                    "minor",
                    "gitCommit",
                    "gitTreeState",
                    "buildDate",
                    "goVersion",
                    "compiler",
                    "platform",
                ),
                "",
            )
            | {"gitVersion": "v1.33.1"},
        ),
        REVIEW: review,
        "GET /api/v1/namespaces/ml/secrets/store": (200, {"metadata": {"name": "store"}}),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": server.url}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    from kubernetes.config import kube_config

    # The module reads KUBECONFIG when it is imported.
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    return server


def test_check_kubernetes_passes(kubernetes: FakeServer) -> None:
    outcome = cluster.check_kubernetes(PODS)
    assert outcome.message == "Kubernetes v1.33.1, all permissions granted"
    assert outcome.clock_skew == pytest.approx(0, abs=2)


def test_check_kubernetes_names_all_missing_permissions(kubernetes: FakeServer) -> None:
    kubernetes.denied |= {("pods", "create"), ("pods/log", "get")}  # type: ignore[attr-defined]
    assert failure(cluster.check_kubernetes, PODS)[0] == "permission denied: create pods, get pods/log"


def test_check_kubernetes_names_a_missing_secret(kubernetes: FakeServer) -> None:
    kubernetes.responses["GET /api/v1/namespaces/ml/secrets/store"] = (404, {"message": "not found"})
    problem, fix = failure(cluster.check_kubernetes, PODS)
    assert problem == "there is no secret store"
    assert fix.startswith("kubectl --namespace ml create secret generic")


def test_check_kubernetes_does_not_need_to_read_secrets(kubernetes: FakeServer) -> None:
    kubernetes.responses["GET /api/v1/namespaces/ml/secrets/store"] = (403, {"message": "forbidden"})
    assert "all permissions granted" in cluster.check_kubernetes(PODS).message


def test_check_kubernetes_reports_an_expired_token(kubernetes: FakeServer) -> None:
    kubernetes.responses[REVIEW] = (401, {"message": "Unauthorized"})
    assert failure(cluster.check_kubernetes, PODS) == (
        "status 401: Unauthorized",
        "renew the account's token or certificate",
    )


def test_check_kubernetes_requires_an_image(kubernetes: FakeServer) -> None:
    assert failure(cluster.check_kubernetes, PodSettings())[0] == "EVERGREEN_PODS__IMAGE is not set"
    assert kubernetes.requests == []


def test_check_kubernetes_without_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    problem, fix = failure(cluster.check_kubernetes, PODS)
    assert problem.startswith("no cluster is configured: ")
    assert fix.endswith("or KUBECONFIG to a file")
