"""deploy/kubernetes/training.yaml on a cluster that enforces RBAC and Pod Security: enough to train, and no more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, utils
from kubernetes.stream import stream

from evergreen.orchestration.operators.pod import delete_pods_of_run
from evergreen.orchestration.triggers.pod import TrainerPodTrigger
from evergreen.settings import REPOSITORY, settings
from support.cluster import Cluster
from support.documents import DOCS, table_below
from support.training_tasks import Trial, expected, template
from support.waiting import eventually

pytestmark = pytest.mark.kubernetes

MANIFESTS = (REPOSITORY / "deploy/kubernetes/training.yaml").read_text()
AIRFLOW = ("airflow-worker", "airflow-triggerer", "airflow-dag-processor")
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = (
    *("pods", "pods/log", "pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "pods/eviction"),
    *("pods/status", "events", "secrets", "configmaps", "serviceaccounts", "serviceaccounts/token", "services"),
    *("persistentvolumeclaims", "persistentvolumes", "namespaces", "nodes", "nodes/proxy", "resourcequotas"),
    *("apps:deployments", "apps:daemonsets", "batch:jobs", "batch:cronjobs", "networking.k8s.io:networkpolicies"),
    *("rbac.authorization.k8s.io:roles", "rbac.authorization.k8s.io:rolebindings"),
    *("rbac.authorization.k8s.io:clusterrolebindings", "coordination.k8s.io:leases"),
)


@dataclass(frozen=True)
class Installation:
    """What training.yaml has made, in two namespaces of this test's own."""

    cluster: Cluster
    airflow: str  # namespace

    @property
    def api(self) -> client.CoreV1Api:
        return self.cluster.api

    @property
    def training(self) -> str:
        return self.cluster.namespace

    def allowed(self, namespace: str, account: str, in_namespace: str) -> set[tuple[str, str]]:
        """All of RESOURCES and VERBS that the service account has, by the API server's own word."""
        reviews = client.AuthorizationV1Api(self.api.api_client)
        found = set()
        for resource, verb in product(RESOURCES, VERBS):
            group, _, path = resource.rpartition(":")
            name, _, subresource = path.partition("/")
            attributes = {"group": group, "resource": name, "subresource": subresource, "verb": verb}
            spec = {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
                "resourceAttributes": {**attributes, "namespace": in_namespace},
            }
            if reviews.create_subject_access_review({"spec": spec}).status.allowed:
                found.add((resource, verb))
        return found

    def connection(self, account: str) -> str:
        """An Airflow connection with the credentials of this account, as JSON."""
        token = self.api.create_namespaced_service_account_token(
            account, self.airflow, {"spec": {"audiences": [], "expirationSeconds": 3600}}
        ).status.token
        here = self.api.api_client.configuration
        kube_config = {
            "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": account}}],
            "clusters": [{"name": "it", "cluster": {"server": here.host, "certificate-authority": here.ssl_ca_cert}}],
            "users": [{"name": account, "user": {"token": token}}],
        }
        return json.dumps({"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(kube_config)}})


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> Iterator[Installation]:
    training, airflow = f"{cluster.namespace}-training", f"{cluster.namespace}-airflow"
    text = MANIFESTS.replace("evergreen-training", training).replace("namespace: airflow}", f"namespace: {airflow}}}")
    cluster.api.create_namespace({"metadata": {"name": airflow}})
    for account in AIRFLOW:
        cluster.api.create_namespaced_service_account(airflow, {"metadata": {"name": account}})
    for manifest in yaml.safe_load_all(text):
        utils.create_from_dict(cluster.api.api_client, manifest)
    yield Installation(Cluster(cluster.api, training, cluster.image), airflow)
    cluster.api.delete_collection_namespaced_pod(training, grace_period_seconds=0)
    for namespace in (training, airflow):
        cluster.api.delete_namespace(namespace)


@pytest.fixture(scope="module")
def claims(installation: Installation, shared: Path) -> Iterator[Path]:
    """A pod template whose volumes are claims: `restricted` allows no folder of a node."""
    file = template(shared / "restricted.yaml", shared)
    pod = json.loads(file.read_text())
    for volume in pod["spec"]["volumes"]:
        name = f"{installation.training}-{volume['name']}"
        shape = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        claim = {"namespace": installation.training, "name": volume["name"]}
        installation.api.create_persistent_volume(
            {
                "metadata": {"name": name},
                "spec": {
                    **shape,
                    "capacity": {"storage": "1Gi"},
                    "hostPath": volume.pop("hostPath"),
                    "claimRef": claim,
                    "persistentVolumeReclaimPolicy": "Retain",
                },
            }
        )
        installation.api.create_namespaced_persistent_volume_claim(
            installation.training,
            {
                "metadata": {"name": volume["name"]},
                "spec": {**shape, "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}},
            },
        )
        volume["persistentVolumeClaim"] = {"claimName": volume["name"]}
    file.write_text(json.dumps(pod))
    yield file
    for volume in pod["spec"]["volumes"]:
        installation.api.delete_persistent_volume(f"{installation.training}-{volume['name']}")


@pytest.fixture
def begin(
    trial: Callable[..., Trial], installation: Installation, claims: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Trial]:
    """Train as Airflow's workers do, with their credentials, in the namespace that enforces `restricted`."""
    for account in AIRFLOW:
        monkeypatch.setenv(f"AIRFLOW_CONN_{account.upper().replace('-', '_')}", installation.connection(account))
    pods = {
        "namespace": installation.training,
        "service_account": "trainer",
        "connection": "airflow_worker",
        "template": claims,
    }
    return lambda **options: trial(pods=pods, **options)


def listed_rights() -> Mapping[str, set[tuple[str, str]]]:
    """What docs/trust.md says that each account may do in the training namespace."""
    rights = {}
    for account, text, *_ in table_below(DOCS / "trust.md", "### In the cluster"):
        found = set()
        for part in text.split(";") if "`" in text else ():
            resource, _, verbs = part.partition(":")
            found |= {(resource.strip(" `"), verb.strip()) for verb in verbs.split(",")}
        rights[account.strip("`")] = found
    return rights


@pytest.mark.cpus(0)
@pytest.mark.parametrize("account", [*AIRFLOW, "trainer"])
def test_each_account_has_the_rights_of_the_page_and_no_more(installation: Installation, account: str) -> None:
    namespace = installation.training if account == "trainer" else installation.airflow
    assert installation.allowed(namespace, account, installation.training) == listed_rights()[account]
    for elsewhere in (installation.airflow, "kube-system"):
        assert installation.allowed(namespace, account, elsewhere) == set()


@pytest.mark.cpus(0)
@pytest.mark.parametrize(
    "weakness",
    [
        {"hostNetwork": True},
        {"volumes": [{"name": "node", "hostPath": {"path": "/"}}]},
        {"securityContext": {"runAsUser": 0}},
        {"containers": [{"name": "trainer", "image": "none", "securityContext": {"privileged": True}}]},
    ],
    ids=lambda weakness: next(iter(weakness)),
)
def test_the_namespace_refuses_a_pod_that_is_not_restricted(
    installation: Installation, weakness: Mapping[str, Any]
) -> None:
    pod = {"metadata": {"name": "strong"}, "spec": {"containers": [{"name": "trainer", "image": "none"}], **weakness}}
    with pytest.raises(client.ApiException, match="violates PodSecurity") as refused:
        installation.api.create_namespaced_pod(installation.training, pod, dry_run="All")
    assert refused.value.status == 403


def test_a_restricted_pod_trains_by_the_rights_of_the_worker(
    begin: Callable[..., Trial], installation: Installation, deferrable: bool
) -> None:
    job = begin(deferrable=deferrable, steps=60)
    pod, _ = installation.cluster.at_work(job.pod, None, 1)
    assert pod.spec.service_account_name == "trainer"
    assert pod.spec.automount_service_account_token is False
    assert not [volume.name for volume in pod.spec.volumes if volume.projected], "a token"

    def run(command: str) -> str:
        call = installation.api.connect_get_namespaced_pod_exec
        shell = ["sh", "-c", f"{command} 2>&1"]
        return stream(call, job.pod, installation.training, container="trainer", command=shell, stdout=True).strip()

    assert run("id -u") == "10001"
    assert "No such file" in run("ls /var/run/secrets/kubernetes.io")
    assert "Read-only file system" in run("touch /opt/evergreen/x")
    assert run("grep CapEff /proc/self/status").endswith("0000000000000000")
    assert run("grep NoNewPrivs /proc/self/status").endswith("1")
    assert job.value() == expected(60)
    eventually("its pod is gone", lambda: installation.cluster.pod(job.pod) is None)


def test_the_triggerer_and_the_dag_processor_do_with_less(
    begin: Callable[..., Trial], installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    job = begin(deferrable=True, watched=False, steps=10)
    pod, _ = installation.cluster.at_work(job.pod, None, 1)
    trigger = TrainerPodTrigger(
        name=job.pod,
        namespace=installation.training,
        uid=pod.metadata.uid,
        startup_seconds=60,
        logging_seconds=1,
        connection="airflow_triggerer",
        state={},
    )

    async def wait_for_event() -> Any:
        return (await anext(trigger.run())).payload

    assert asyncio.run(wait_for_event())["problem"] == ""
    assert "cannot be" not in caplog.text

    # The task of a run that failed has left its pod.
    run = pod.metadata.annotations["evergreen/run"]
    pods = settings().pods
    delete_pods_of_run(run, pods.model_copy(update={"connection": "airflow_dag_processor"}))
    eventually("the pod is gone", lambda: installation.cluster.pod(job.pod) is None)

    again = begin(deferrable=True, watched=False, steps=600)
    pod, _ = installation.cluster.at_work(again.pod, None, 1)
    trigger.name, trigger.uid = again.pod, pod.metadata.uid
    asyncio.run(trigger.on_kill())
    eventually("the pod is gone", lambda: installation.cluster.pod(again.pod) is None)
