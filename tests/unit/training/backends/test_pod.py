"""The manifest of a trainer's pod, rule by rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evergreen.errors import SpecError
from evergreen.settings import PodSettings
from evergreen.spec.model import ModelSpec, Resources
from evergreen.training import Job
from evergreen.training.attempt import Attempt
from evergreen.training.backends import pod

pytestmark = pytest.mark.unit

URI = f"s3://bucket/jobs/net_of_flights/{'f' * 64}/job.json"
RUN = "net_of_flights.retrain scheduled__2026-01-01T00:00:00+00:00"


def model(**resources: Any) -> ModelSpec:
    return ModelSpec(
        name="net_of_flights",
        owner="Flight Operations",
        features="flight_delay",
        feature_service="flight_delay",
        schedule="0 0 * * 1",
        gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
        resources=resources,
    )


@pytest.fixture
def manifest(make_job: Callable[..., Job]) -> Callable[..., dict[str, Any]]:
    def make(template: dict[str, Any] | None = None, uri: str = URI, run: str = RUN, **fields: Any) -> dict[str, Any]:
        resources = {name: fields.pop(name) for name in list(fields) if name in Resources.model_fields}
        pods = PodSettings(**{"image": "registry/trainer@sha256:1", **fields})
        return pod.pod_manifest(model(**resources), make_job(model="net_of_flights"), uri, run, pods, template)

    return make


@pytest.fixture
def spec(manifest: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return manifest(gpu=1)["spec"]


@pytest.fixture
def container(spec: dict[str, Any]) -> dict[str, Any]:
    [only] = spec["containers"]
    return only


class TestRestricted:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, control by control."""

    def test_no_host_namespaces(self, spec: dict[str, Any]) -> None:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()

    def test_no_privileges(self, container: dict[str, Any]) -> None:
        assert container["securityContext"]["privileged"] is False
        assert container["securityContext"]["allowPrivilegeEscalation"] is False

    def test_no_capabilities(self, container: dict[str, Any]) -> None:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}

    def test_only_allowed_volume_types(self, spec: dict[str, Any]) -> None:
        allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
        for volume in spec["volumes"]:
            assert volume.keys() - {"name"} <= allowed | {"secret"}

    def test_no_host_ports(self, container: dict[str, Any]) -> None:
        assert "ports" not in container

    def test_not_as_root(self, spec: dict[str, Any], container: dict[str, Any]) -> None:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001

    def test_default_seccomp_profile(self, spec: dict[str, Any]) -> None:
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}

    def test_baseline_restrictions(self, spec: dict[str, Any], container: dict[str, Any]) -> None:
        for context in (spec["securityContext"], container["securityContext"]):
            assert not {"seLinuxOptions", "sysctls", "procMount", "windowsOptions", "appArmorProfile"} & context.keys()

    def test_stricter_than_restricted(self, spec: dict[str, Any], container: dict[str, Any]) -> None:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert spec["automountServiceAccountToken"] is False
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp", "/dev/shm"]


def test_memory_and_gpu_requests_equal_their_limits(manifest: Callable[..., dict[str, Any]]) -> None:
    [container] = manifest(cpu=8, memory_gib=31.5, gpu=2, shm_gib=4)["spec"]["containers"]
    limits = {"memory": "32256Mi", "nvidia.com/gpu": "2"}
    assert container["resources"] == {"requests": {"cpu": "8", **limits}, "limits": limits}


def test_shared_memory_has_the_requested_size(manifest: Callable[..., dict[str, Any]]) -> None:
    volumes = {volume["name"]: volume for volume in manifest(shm_gib=2)["spec"]["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2048Mi"}


def test_no_gpu_is_visible_without_a_request(manifest: Callable[..., dict[str, Any]]) -> None:
    def variables(**resources: Any) -> dict[str, str]:
        [container] = manifest(**resources)["spec"]["containers"]
        return {item["name"]: item.get("value", "") for item in container["env"]}

    assert variables()["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in variables(gpu=1)


def test_threads_wait_without_using_up_the_cores_of_a_pod(manifest: Callable[..., dict[str, Any]]) -> None:
    [container] = manifest()["spec"]["containers"]
    assert {"name": "GOMP_SPINCOUNT", "value": "1000"} in container["env"]


def test_gpu_type_selects_nodes_by_label(manifest: Callable[..., dict[str, Any]]) -> None:
    spec = manifest(gpu=1, gpu_type="NVIDIA-L4", node_selector={"zone": "a"}, gpu_type_label="gpu/kind")["spec"]
    assert spec["nodeSelector"] == {"gpu/kind": "NVIDIA-L4", "zone": "a"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in spec["tolerations"]
    assert manifest()["spec"]["tolerations"] == []


@pytest.mark.parametrize("spot", [True, False])
def test_spot_nodes_only_for_models_that_allow_them(manifest: Callable[..., dict[str, Any]], spot: bool) -> None:
    toleration = {"key": "spot", "operator": "Exists"}
    pod_json = manifest(spot=spot, spot_tolerations=[toleration], spot_node_selector={"capacity": "spot"})
    assert (toleration in pod_json["spec"]["tolerations"]) is spot
    assert pod_json["spec"]["nodeSelector"] == ({"capacity": "spot"} if spot else {})
    assert f'"spot":{"true" if spot else "false"}' in variable(pod_json, "EVERGREEN_ATTEMPT_ALLOCATION")


def variable(pod_json: dict[str, Any], name: str) -> str:
    [container] = pod_json["spec"]["containers"]
    return next(item["value"] for item in container["env"] if item["name"] == name)


def test_attempt_reads_its_environment(
    manifest: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    [container] = manifest(gpu=1, gpu_type="NVIDIA-L4")["spec"]["containers"]
    for item in container["env"]:
        from_pod = item.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        monkeypatch.setenv(item["name"], "the-uid" if from_pod == "metadata.uid" else item["value"])
    attempt = Attempt.from_environment("net_of_flights")
    assert (attempt.id, attempt.dag_run, attempt.team) == ("the-uid", RUN, "Flight Operations")
    assert (attempt.allocation.gpu, attempt.allocation.gpu_type, attempt.allocation.memory_gib) == (1, "NVIDIA-L4", 4)


def test_pod_has_a_deadline_and_a_grace_period(manifest: Callable[..., dict[str, Any]]) -> None:
    spec = manifest(timeout_minutes=90)["spec"]
    assert spec["activeDeadlineSeconds"] == 5400
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] == 120


def test_pod_settings_are_applied(manifest: Callable[..., dict[str, Any]]) -> None:
    pod_json = manifest(
        priority_class="batch", secret="store", service_account="trainer", image_pull_secret="pull", namespace="ml"
    )
    [container] = pod_json["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert pod_json["spec"]["serviceAccountName"] == "trainer"
    assert pod_json["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert pod_json["spec"]["priorityClassName"] == "batch"
    assert pod_json["metadata"]["namespace"] == "ml"
    assert container["command"] == ["python", "-m", "evergreen.training", URI]


@pytest.mark.parametrize("name", ["a", "net_of_flights", "a_", "n" * 100])
def test_pod_name_is_a_dns_label(name: str) -> None:
    pod_json = pod.pod_name(name, "0123456789abcdef" + "f" * 48)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", pod_json)
    assert len(pod_json) <= 63
    assert pod_json.endswith("-0123456789abcdef")


def test_labels_and_annotations_are_valid(manifest: Callable[..., dict[str, Any]]) -> None:
    labels = manifest()["metadata"]["labels"]
    for value in labels.values():
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", value)
        assert len(value) <= 63
    assert labels["evergreen/model"] == "net_of_flights"
    assert labels["evergreen/team"].startswith("Flight-Operations-")
    assert labels["evergreen/job"] == "f" * 16
    assert manifest()["metadata"]["annotations"]["evergreen/run"] == RUN
    assert manifest()["metadata"]["annotations"]["evergreen/job"] == URI


def test_changed_label_values_stay_distinct(manifest: Callable[..., dict[str, Any]]) -> None:
    def run(name: str) -> str:
        return manifest(run=name)["metadata"]["labels"]["evergreen/run"]

    assert len({run("a:b"), run("a/b"), run("a b"), run(":"), run("x" * 64), run("x" * 65)}) == 6


def test_spec_hash_depends_on_settings_but_not_on_the_run(manifest: Callable[..., dict[str, Any]]) -> None:
    def spec_hash(**fields: Any) -> str:
        return manifest(**fields)["metadata"]["annotations"][pod.SPEC_HASH_ANNOTATION]

    assert spec_hash() == spec_hash(run="another run")
    assert len({spec_hash(), spec_hash(image="other"), spec_hash(memory_gib=5), spec_hash(secret="s")}) == 4


class TestTemplate:
    """Fields that the cluster's owner adds."""

    def test_fields_are_added(self, manifest: Callable[..., dict[str, Any]]) -> None:
        affinity = {"nodeAffinity": {}}
        pod_json = manifest(
            {
                "metadata": {"labels": {"cost-center": "7"}},
                "spec": {
                    "affinity": affinity,
                    "tolerations": [{"key": "ml"}],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                    "containers": [
                        {
                            "name": "trainer",
                            "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                            "resources": {"limits": {"cpu": "4", "ephemeral-storage": "10Gi"}},
                        }
                    ],
                    "initContainers": [{"name": "first"}],
                },
            },
            gpu=1,
        )
        spec, [container] = pod_json["spec"], pod_json["spec"]["containers"]
        assert pod_json["metadata"]["labels"]["cost-center"] == "7"
        assert pod_json["metadata"]["labels"]["app.kubernetes.io/name"] == "evergreen-trainer"
        assert spec["affinity"] == affinity
        assert [t["key"] for t in spec["tolerations"]] == ["ml", "nvidia.com/gpu"]
        assert {v["name"] for v in spec["volumes"]} == {"data", "tmp", "shm"}
        assert {m["mountPath"] for m in container["volumeMounts"]} == {"/data", "/tmp", "/dev/shm"}
        assert container["resources"]["limits"] == {
            "cpu": "4", "ephemeral-storage": "10Gi", "memory": "4096Mi", "nvidia.com/gpu": "1"
        }  # fmt: skip
        assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]
        assert spec["initContainers"] == [{"name": "first", "terminationMessagePolicy": "FallbackToLogsOnError"}]

    def test_rules_cannot_be_overridden(self, manifest: Callable[..., dict[str, Any]]) -> None:
        pod_json = manifest(
            {
                "metadata": {"name": "mine", "annotations": {"evergreen/job": "mine"}},
                "spec": {
                    "restartPolicy": "Always",
                    "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
                    "containers": [
                        {
                            "name": "trainer",
                            "image": "other",
                            "securityContext": {"privileged": True},
                            "env": [{"name": "EVERGREEN_ATTEMPT_ID", "value": "always the same"}],
                        }
                    ],
                },
            }
        )
        [container] = pod_json["spec"]["containers"]
        assert pod_json["metadata"]["name"] == f"net-of-flights-{'f' * 16}"
        assert pod_json["metadata"]["annotations"]["evergreen/job"] == URI
        assert pod_json["spec"]["restartPolicy"] == "Never"
        assert pod_json["spec"]["securityContext"]["runAsUser"] == 10001
        assert pod_json["spec"]["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["privileged"] is False
        assert container["image"] == "registry/trainer@sha256:1"
        assert [item.get("value") for item in container["env"] if item["name"] == "EVERGREEN_ATTEMPT_ID"] == [None]

    def test_volume_can_be_redefined(self, manifest: Callable[..., dict[str, Any]]) -> None:
        disk = {"name": "tmp", "ephemeral": {"volumeClaimTemplate": {}}}
        assert disk in manifest({"spec": {"volumes": [disk]}})["spec"]["volumes"]

    def test_template_is_read_from_yaml(self, tmp_path: Path) -> None:
        (tmp_path / "pod.yaml").write_text("kind: Pod\nspec:\n  affinity: {}\n")
        assert pod.load_pod_template(tmp_path / "pod.yaml") == {"kind": "Pod", "spec": {"affinity": {}}}

    @pytest.mark.parametrize("text", [None, "a: [", "[]", "kind: Deployment", "spec: []"])
    def test_invalid_template_is_refused(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "pod.yaml").write_text(text)
        with pytest.raises(SpecError, match="pod.yaml"):
            pod.load_pod_template(tmp_path / "pod.yaml")


class TestFaults:
    """Faults are reported before anything is created, all at once."""

    def test_missing_image(self, manifest: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(SpecError, match=r"EVERGREEN_PODS__IMAGE: is not set → give the trainer's image"):
            manifest(image=None)

    def test_jobs_that_no_pod_can_read(self, manifest: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(SpecError, match="EVERGREEN_JOBS: /home/jobs/job.json is a file of this machine"):
            manifest(uri="/home/jobs/job.json")
        mounted = {"spec": {"containers": [{"name": "trainer", "volumeMounts": [{"name": "a", "mountPath": "/home"}]}]}}
        assert manifest(mounted, uri="/home/jobs/job.json")

    def test_second_container(self, manifest: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(SpecError, match="2 faults") as refused:
            manifest({"spec": {"containers": [{"name": "proxy"}]}}, image=None)
        assert "container 'proxy': runs beside the trainer" in str(refused.value)
