"""The pod of a job, rule by rule."""

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

    def test_nothing_of_the_host(self, spec: dict[str, Any]) -> None:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()

    def test_no_privileges(self, container: dict[str, Any]) -> None:
        assert container["securityContext"]["privileged"] is False
        assert container["securityContext"]["allowPrivilegeEscalation"] is False

    def test_no_capabilities(self, container: dict[str, Any]) -> None:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}

    def test_volumes_of_the_allowed_types_only(self, spec: dict[str, Any]) -> None:
        allowed = {
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
        }
        for volume in spec["volumes"]:
            assert volume.keys() - {"name"} <= allowed | {"secret"}

    def test_no_ports_of_the_host(self, container: dict[str, Any]) -> None:
        assert "ports" not in container

    def test_not_as_root(self, spec: dict[str, Any], container: dict[str, Any]) -> None:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001

    def test_the_default_seccomp_profile(self, spec: dict[str, Any]) -> None:
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}

    def test_nothing_that_the_baseline_forbids(self, spec: dict[str, Any], container: dict[str, Any]) -> None:
        for context in (spec["securityContext"], container["securityContext"]):
            assert not {"seLinuxOptions", "sysctls", "procMount", "windowsOptions", "appArmorProfile"} & context.keys()

    def test_and_beyond_it(self, spec: dict[str, Any], container: dict[str, Any]) -> None:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert spec["automountServiceAccountToken"] is False
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp", "/dev/shm"]


def test_memory_and_gpus_are_asked_for_as_they_are_limited(manifest: Callable[..., dict[str, Any]]) -> None:
    [container] = manifest(cpu=8, memory_gib=31.5, gpu=2, shm_gib=4)["spec"]["containers"]
    firm = {"memory": "32256Mi", "nvidia.com/gpu": "2"}
    assert container["resources"] == {"requests": {"cpu": "8", **firm}, "limits": firm}


def test_shared_memory_of_the_size_that_is_asked_for(manifest: Callable[..., dict[str, Any]]) -> None:
    volumes = {volume["name"]: volume for volume in manifest(shm_gib=2)["spec"]["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2048Mi"}


def test_without_a_gpu_none_is_seen(manifest: Callable[..., dict[str, Any]]) -> None:
    def variables(**resources: Any) -> dict[str, str]:
        [container] = manifest(**resources)["spec"]["containers"]
        return {item["name"]: item.get("value", "") for item in container["env"]}

    assert variables()["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in variables(gpu=1)


def test_a_kind_of_gpu_is_a_label_of_nodes(manifest: Callable[..., dict[str, Any]]) -> None:
    found = manifest(gpu=1, gpu_type="NVIDIA-L4", node_selector={"zone": "a"}, gpu_type_label="gpu/kind")["spec"]
    assert found["nodeSelector"] == {"gpu/kind": "NVIDIA-L4", "zone": "a"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in found["tolerations"]
    assert manifest()["spec"]["tolerations"] == []


@pytest.mark.parametrize("spot", [True, False])
def test_spot_nodes_only_for_models_that_allow_them(manifest: Callable[..., dict[str, Any]], spot: bool) -> None:
    toleration = {"key": "spot", "operator": "Exists"}
    made = manifest(spot=spot, spot_tolerations=[toleration], spot_node_selector={"capacity": "spot"})
    assert (toleration in made["spec"]["tolerations"]) is spot
    assert made["spec"]["nodeSelector"] == ({"capacity": "spot"} if spot else {})
    assert f'"spot":{"true" if spot else "false"}' in variable(made, "EVERGREEN_ATTEMPT_ALLOCATION")


def variable(made: dict[str, Any], name: str) -> str:
    [container] = made["spec"]["containers"]
    return next(item["value"] for item in container["env"] if item["name"] == name)


def test_the_attempt_is_told_what_it_is(
    manifest: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    [container] = manifest(gpu=1, gpu_type="NVIDIA-L4")["spec"]["containers"]
    for item in container["env"]:
        from_pod = item.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        monkeypatch.setenv(item["name"], "the-uid" if from_pod == "metadata.uid" else item["value"])
    told = Attempt.from_environment("net_of_flights")
    assert (told.id, told.dag_run, told.team) == ("the-uid", RUN, "Flight Operations")
    assert (told.allocation.gpu, told.allocation.gpu_type, told.allocation.memory_gib) == (1, "NVIDIA-L4", 4)


def test_an_attempt_has_an_end_and_time_to_leave(manifest: Callable[..., dict[str, Any]]) -> None:
    spec = manifest(timeout_minutes=90)["spec"]
    assert spec["activeDeadlineSeconds"] == 5400
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] == 120


def test_what_the_settings_name(manifest: Callable[..., dict[str, Any]]) -> None:
    made = manifest(
        priority_class="batch",
        secret="store",
        service_account="trainer",
        image_pull_secret="pull",
        namespace="ml",
    )
    [container] = made["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert made["spec"]["serviceAccountName"] == "trainer"
    assert made["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert made["spec"]["priorityClassName"] == "batch"
    assert made["metadata"]["namespace"] == "ml"
    assert container["command"] == ["python", "-m", "evergreen.training", URI]


@pytest.mark.parametrize("name", ["a", "net_of_flights", "a_", "n" * 100])
def test_the_name_is_one_that_dns_takes(name: str) -> None:
    made = pod.pod_name(name, "0123456789abcdef" + "f" * 48)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= 63
    assert made.endswith("-0123456789abcdef")


def test_labels_are_such_that_the_api_server_takes(manifest: Callable[..., dict[str, Any]]) -> None:
    labels = manifest()["metadata"]["labels"]
    for value in labels.values():
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", value)
        assert len(value) <= 63
    assert labels["evergreen/model"] == "net_of_flights"
    assert labels["evergreen/team"].startswith("Flight-Operations-")
    assert labels["evergreen/job"] == "f" * 16
    assert manifest()["metadata"]["annotations"]["evergreen/run"] == RUN
    assert manifest()["metadata"]["annotations"]["evergreen/job"] == URI


def test_labels_that_differ_in_what_had_to_be_changed_still_differ(
    manifest: Callable[..., dict[str, Any]],
) -> None:
    def run(name: str) -> str:
        return manifest(run=name)["metadata"]["labels"]["evergreen/run"]

    assert len({run("a:b"), run("a/b"), run("a b"), run(":"), run("x" * 64), run("x" * 65)}) == 6


def test_what_it_is_made_from_tells_other_settings_apart_and_no_runs(
    manifest: Callable[..., dict[str, Any]],
) -> None:
    def made_from(**fields: Any) -> str:
        return manifest(**fields)["metadata"]["annotations"][pod.SPEC_HASH_ANNOTATION]

    assert made_from() == made_from(run="another run")
    assert len({made_from(), made_from(image="other"), made_from(memory_gib=5), made_from(secret="s")}) == 4


class TestTemplate:
    """What a cluster's owner adds."""

    def test_is_added_to(self, manifest: Callable[..., dict[str, Any]]) -> None:
        affinity = {"nodeAffinity": {}}
        made = manifest(
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
        spec, [container] = made["spec"], made["spec"]["containers"]
        assert made["metadata"]["labels"]["cost-center"] == "7"
        assert made["metadata"]["labels"]["app.kubernetes.io/name"] == "evergreen-trainer"
        assert spec["affinity"] == affinity
        assert [t["key"] for t in spec["tolerations"]] == ["ml", "nvidia.com/gpu"]
        assert {v["name"] for v in spec["volumes"]} == {"data", "tmp", "shm"}
        assert {m["mountPath"] for m in container["volumeMounts"]} == {"/data", "/tmp", "/dev/shm"}
        assert container["resources"]["limits"] == {
            "cpu": "4", "ephemeral-storage": "10Gi", "memory": "4096Mi", "nvidia.com/gpu": "1"
        }  # fmt: skip
        assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]
        assert spec["initContainers"] == [{"name": "first"}]

    def test_does_not_take_the_rules_away(self, manifest: Callable[..., dict[str, Any]]) -> None:
        made = manifest(
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
        [container] = made["spec"]["containers"]
        assert made["metadata"]["name"] == f"net-of-flights-{'f' * 16}"
        assert made["metadata"]["annotations"]["evergreen/job"] == URI
        assert made["spec"]["restartPolicy"] == "Never"
        assert made["spec"]["securityContext"]["runAsUser"] == 10001
        assert made["spec"]["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["privileged"] is False
        assert container["image"] == "registry/trainer@sha256:1"
        assert [item.get("value") for item in container["env"] if item["name"] == "EVERGREEN_ATTEMPT_ID"] == [None]

    def test_may_put_a_volume_elsewhere(self, manifest: Callable[..., dict[str, Any]]) -> None:
        disk = {"name": "tmp", "ephemeral": {"volumeClaimTemplate": {}}}
        assert disk in manifest({"spec": {"volumes": [disk]}})["spec"]["volumes"]

    def test_is_read_from_yaml(self, tmp_path: Path) -> None:
        (tmp_path / "pod.yaml").write_text("kind: Pod\nspec:\n  affinity: {}\n")
        assert pod.load_pod_template(tmp_path / "pod.yaml") == {"kind": "Pod", "spec": {"affinity": {}}}

    @pytest.mark.parametrize("text", [None, "a: [", "[]", "kind: Deployment", "spec: []"])
    def test_that_is_none_is_refused(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "pod.yaml").write_text(text)
        with pytest.raises(SpecError, match="pod.yaml"):
            pod.load_pod_template(tmp_path / "pod.yaml")


class TestFaults:
    """Told before anything is done, all at once."""

    def test_no_image(self, manifest: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(SpecError, match=r"EVERGREEN_PODS__IMAGE: is not set → give the trainer's image"):
            manifest(image=None)

    def test_jobs_where_no_pod_can_read_them(self, manifest: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(SpecError, match="EVERGREEN_JOBS: /home/jobs/job.json is a file of this machine"):
            manifest(uri="/home/jobs/job.json")
        mounted = {"spec": {"containers": [{"name": "trainer", "volumeMounts": [{"name": "a", "mountPath": "/home"}]}]}}
        assert manifest(mounted, uri="/home/jobs/job.json")

    def test_a_container_beside_the_trainer(self, manifest: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(SpecError, match="2 faults") as refused:
            manifest({"spec": {"containers": [{"name": "proxy"}]}}, image=None)
        assert "container 'proxy': runs beside the trainer" in str(refused.value)
