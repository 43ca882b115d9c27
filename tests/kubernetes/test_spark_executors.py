"""Features computed by executors that are pods, for a task outside of the cluster: nothing is shared but a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kubernetes import client

from evergreen.local_services import accepts_connections
from evergreen.spec import loader
from support.cluster import Cluster
from support.feature_builds import build_features
from support.spark_stores import REAL_S3, needs_s3a, s3_folder, s3a_conf

IMAGE = os.environ.get("EVERGREEN_TEST_SPARK_IMAGE")
DAYS = [f"2013-01-0{n}" for n in range(1, 5)]

pytestmark = [
    pytest.mark.kubernetes,
    *needs_s3a,
    pytest.mark.skipif(not IMAGE, reason="EVERGREEN_TEST_SPARK_IMAGE names no image of executors"),
]


@pytest.fixture
def account(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    """Return the settings of a service account that may start executors, which get the keys of a Secret."""
    name, namespace = "spark", cluster.namespace
    cluster.api.create_namespaced_service_account(namespace, {"metadata": {"name": name}})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    binding = {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]}
    client.RbacAuthorizationV1Api(cluster.api.api_client).create_namespaced_role_binding(namespace, binding)
    keys = {variable: os.environ[variable] for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    cluster.api.create_namespaced_secret(namespace, {"metadata": {"name": "store"}, "stringData": keys})
    request = {"spec": {"audiences": [], "expirationSeconds": 3600}}  # for the API server
    token = cluster.api.create_namespaced_service_account_token(name, namespace, request).status.token
    (tmp_path / "token").write_text(token)
    (tmp_path / "ca.crt").write_bytes(Path(client.Configuration.get_default_copy().ssl_ca_cert).read_bytes())
    return {
        "spark.kubernetes.namespace": namespace,
        "spark.kubernetes.authenticate.oauthTokenFile": str(tmp_path / "token"),
        "spark.kubernetes.authenticate.caCertFile": str(tmp_path / "ca.crt"),
        **{f"spark.kubernetes.executor.secretKeyRef.{variable}": f"store:{variable}" for variable in keys},
    }


def test_features_of_executors_in_pods(
    cluster: Cluster,
    account: Mapping[str, str],
    use_home: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from evergreen_models.departure_counts.raw import deliver as deliver_hours
    from evergreen_models.flight_delay.raw import deliver as deliver_days

    [node] = cluster.api.list_node().items
    [host] = [address.address for address in node.status.addresses if address.type == "InternalIP"]
    port = urlsplit(REAL_S3 or "").port or 80
    if not accepts_connections(host, port, 5):
        pytest.skip(f"the server of EVERGREEN_TEST_S3 does not listen at {host}, where pods could reach it")
    use_home(tmp_path / "local")
    spec = loader.load_spec("departure_counts")
    first, calendar = spec.features.first_period, spec.features.calendar
    hours = list(calendar.periods_between(first, calendar.shift(first, 28)))
    deliver_days(DAYS)
    deliver_hours(hours)
    periods = {"flight_delay": DAYS[-1:], spec.name: hours[-2:]}
    expected = build_features(periods)
    conf = {
        **account,
        "spark.kubernetes.container.image": str(IMAGE),
        "spark.kubernetes.executor.request.cores": "0.2",
        "spark.kubernetes.executor.deleteOnTermination": "false",
        "spark.executor.instances": "2",
        "spark.executor.memory": "600m",
        "spark.executor.memoryOverhead": "300m",
        "spark.driver.memory": "512m",
        "spark.driver.host": host,
        "spark.driver.bindAddress": host,
        "spark.sql.shuffle.partitions": "2",
        "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    }
    monkeypatch.setenv("EVERGREEN_RAW", str(tmp_path / "local" / "lake" / "raw"))
    monkeypatch.setenv("EVERGREEN_SPARK", f"k8s://{client.Configuration.get_default_copy().host}")
    monkeypatch.setenv("EVERGREEN_SPARK_CONF", s3a_conf(**conf))
    monkeypatch.setenv("EVERGREEN_LAKE", "")
    with s3_folder(monkeypatch) as uri:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        assert build_features(periods, EVERGREEN_HOME=str(tmp_path / "home"), EVERGREEN_LAKE=f"{uri}/lake") == expected
    executors = cluster.api.list_namespaced_pod(cluster.namespace, label_selector="spark-role=executor").items
    logs = [cluster.api.read_namespaced_pod_log(pod.metadata.name, cluster.namespace) for pod in executors]
    assert len([log for log in logs if "Finished task" in log]) == 2
