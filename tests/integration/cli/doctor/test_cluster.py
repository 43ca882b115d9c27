"""The cluster's answers: rights given and missing, a secret, no cluster at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evergreen.cli.doctor import cluster
from evergreen.settings import PodSettings
from integration.cli.doctor.conftest import Told
from support.checks import wrong

pytestmark = pytest.mark.integration

REVIEW = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
PODS = PodSettings(image="trainer@sha256:0", namespace="ml", secret="store")


@pytest.fixture
def kubernetes(server: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """An API server that allows everything, and a KUBECONFIG that names it."""
    refused: set[tuple[str, str]] = set()

    def review(body: bytes) -> tuple[int, object]:
        asked = json.loads(body)["spec"]["resourceAttributes"]
        right = ("/".join(filter(None, [asked["resource"], asked["subresource"]])), asked["verb"])
        assert asked["namespace"] == "ml"
        return 201, {"spec": {}, "status": {"allowed": right not in refused}}

    server.refused = refused  # type: ignore[attr-defined]
    server.answers = {
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

    # Where it is, is read when the module is imported.
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    return server


def test_a_cluster_that_is_right(kubernetes: Told) -> None:
    seen = cluster.check_kubernetes(PODS)
    assert seen.message == "Kubernetes v1.33.1, all rights are given"
    assert seen.clock_skew == pytest.approx(0, abs=2)


def test_rights_that_are_missing_are_all_named(kubernetes: Told) -> None:
    kubernetes.refused |= {("pods", "create"), ("pods/log", "get")}  # type: ignore[attr-defined]
    assert wrong(cluster.check_kubernetes, PODS)[0] == "may not create pods, get pods/log"


def test_a_secret_that_is_not_there(kubernetes: Told) -> None:
    kubernetes.answers["GET /api/v1/namespaces/ml/secrets/store"] = (404, {"message": "not found"})
    what, way_out = wrong(cluster.check_kubernetes, PODS)
    assert what == "has no secret store"
    assert way_out.startswith("kubectl --namespace ml create secret generic")


def test_whether_a_secret_is_there_need_not_be_known(kubernetes: Told) -> None:
    kubernetes.answers["GET /api/v1/namespaces/ml/secrets/store"] = (403, {"message": "forbidden"})
    assert "all rights are given" in cluster.check_kubernetes(PODS).message


def test_a_token_that_has_expired(kubernetes: Told) -> None:
    kubernetes.answers[REVIEW] = (401, {"message": "Unauthorized"})
    assert wrong(cluster.check_kubernetes, PODS) == (
        "answers 401: Unauthorized",
        "renew the account's token or certificate",
    )


def test_no_image(kubernetes: Told) -> None:
    assert wrong(cluster.check_kubernetes, PodSettings())[0] == "EVERGREEN_PODS__IMAGE is not set"
    assert kubernetes.asked == []


def test_no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    what, way_out = wrong(cluster.check_kubernetes, PODS)
    assert what.startswith("no cluster is known: ")
    assert way_out.endswith("or a file in KUBECONFIG")
