"""The pod that makes one attempt at a training job, as the JSON that Kubernetes takes. Pure: no cluster is asked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from evergreen.errors import Fault, SpecError
from evergreen.settings import PodSettings
from evergreen.spec.model import ModelSpec, Resources
from evergreen.training import attempt
from evergreen.training.job import Job

TRAINER_CONTAINER = "trainer"
JOB_ANNOTATION, SPEC_HASH_ANNOTATION = "evergreen/job", "evergreen/spec-hash"  # annotations
RUN_LABEL = "evergreen/run"  # label
GRACE_PERIOD_S = 120
"""What a container has to write its last checkpoint; clouds give a spot node between 30 s and this."""

_GPU_RESOURCE = "nvidia.com/gpu"
_USER_ID = 10001


def pod_name(model: str, fingerprint: str) -> str:
    """Name of the pod of this job: a name can be had once, so the API server itself keeps a second pod away."""
    return f"{model[:46].replace('_', '-')}-{fingerprint[:16]}"


def pod_manifest(
    model: ModelSpec,
    job: Job,
    uri: str,
    dag_run: str,
    pods: PodSettings,
    template: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The pod of the job at `uri`, for Airflow's `run`, on top of `template`.

    It keeps the *restricted* Pod Security Standard. A template may add what it likes: it is the cluster's owner
    who writes it.

    Raises:
        SpecError: the settings or the template do not make a pod that could train; all faults are listed.
    """
    base = template or {}
    if faults := [*_configuration_faults(uri, pods, base)]:
        raise SpecError(f"the pod that trains {model.name}", faults)
    nobodys = _merge(base, _trainer_pod(model, job, uri, "", pods))
    whole = _merge(base, _trainer_pod(model, job, uri, dag_run, pods))
    whole["metadata"]["annotations"][SPEC_HASH_ANNOTATION] = hashlib.sha256(
        json.dumps(nobodys, sort_keys=True).encode()
    ).hexdigest()
    return whole


def load_pod_template(file: Path) -> Mapping[str, Any]:
    """The pod template in this YAML file.

    Raises:
        SpecError: there is no such file, or no pod in it.
    """
    import yaml  # Airflow brings it, the trainer does without

    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SpecError(
            "the pod template", [Fault(str(file), str(error), "correct EVERGREEN_PODS__TEMPLATE")]
        ) from None
    whole = isinstance(found, Mapping) and isinstance(found.get("spec", {}), Mapping)
    if not whole or found.get("kind", "Pod") != "Pod":
        raise SpecError("the pod template", [Fault(str(file), "holds no pod", "write one with `kind: Pod`")])
    return found


def _trainer_pod(model: ModelSpec, job: Job, uri: str, dag_run: str, pods: PodSettings) -> dict[str, Any]:
    resources = model.resources
    labels = {"model": model.name, "team": model.owner, "run": dag_run, "job": job.fingerprint[:16]}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": round(resources.timeout_minutes * 60),
        "terminationGracePeriodSeconds": GRACE_PERIOD_S,
        "automountServiceAccountToken": False,  # training asks nothing of the cluster
        "enableServiceLinks": False,
        # A first process ignores SIGTERM until it has a handler: Python's imports would sit out the grace period.
        "shareProcessNamespace": True,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": _node_selector(resources, pods),
        "tolerations": _tolerations(resources, pods),
        "containers": [_container(model, uri, dag_run, pods)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _quantity(resources.shm_gib)}},
        ],
    }
    if resources.priority_class:
        spec["priorityClassName"] = resources.priority_class
    if pods.service_account:
        spec["serviceAccountName"] = pods.service_account
    if pods.image_pull_secret:
        spec["imagePullSecrets"] = [{"name": pods.image_pull_secret}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(model.name, job.fingerprint),
            "namespace": pods.namespace,
            "labels": {
                "app.kubernetes.io/name": "evergreen-trainer",
                **{f"evergreen/{key}": label_value(value) for key, value in labels.items()},
            },
            "annotations": {
                JOB_ANNOTATION: uri,
                "evergreen/run": dag_run,
                # Autoscalers move pods to empty a node; this one would lose what it did since its checkpoint.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
            },
        },
        "spec": spec,
    }


def _container(model: ModelSpec, uri: str, dag_run: str, pods: PodSettings) -> dict[str, Any]:
    resources = model.resources
    variables = {
        **attempt.attempt_environment(dag_run, model.owner, _allocation(resources, pods)),
        "HOME": "/tmp",  # noqa: S108 - libraries cache their compiled kernels there, and all else is read-only
        # Where NVIDIA's runtime is the default, a container that asks for no GPU would see all of them.
        **({} if resources.gpu else {"NVIDIA_VISIBLE_DEVICES": "void"}),
    }
    container: dict[str, Any] = {
        "name": TRAINER_CONTAINER,
        "image": pods.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "evergreen.training", uri],
        "env": [
            # Of the pod, so that two that follow each other under one name are two attempts.
            {"name": attempt.ATTEMPT_ID_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            *({"name": key, "value": value} for key, value in variables.items()),
        ],
        "resources": _resource_requirements(resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
        # A container that dies without a word is told about by the last lines of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108
    }
    if pods.secret:
        container["envFrom"] = [{"secretRef": {"name": pods.secret}}]
    return container


def _resource_requirements(resources: Resources) -> dict[str, Any]:
    """Memory and GPUs are had or not, so what is asked for is the limit. CPUs are shared by weight: a limit would
    only halt a trainer for parts of each 100 ms while its node has CPUs to spare. (A template may set one.)
    """
    firm = {"memory": _quantity(resources.memory_gib)} | ({_GPU_RESOURCE: str(resources.gpu)} if resources.gpu else {})
    return {"requests": {"cpu": str(resources.cpu), **firm}, "limits": firm}


def _allocation(resources: Resources, pods: PodSettings) -> attempt.ResourceAllocation:
    return attempt.ResourceAllocation(
        cpu=resources.cpu,
        memory_gib=resources.memory_gib,
        gpu=resources.gpu,
        gpu_type=resources.gpu_type,
        spot=resources.spot and bool(pods.spot_tolerations or pods.spot_node_selector),
    )


def _node_selector(resources: Resources, pods: PodSettings) -> dict[str, str]:
    return {
        **(pods.spot_node_selector if resources.spot else {}),
        **({pods.gpu_type_label: resources.gpu_type} if resources.gpu_type else {}),
        **resources.node_selector,
    }


def _tolerations(resources: Resources, pods: PodSettings) -> list[dict[str, Any]]:
    of_gpus = [{"key": _GPU_RESOURCE, "operator": "Exists"}] if resources.gpu else []  # GPU nodes keep others away so
    return of_gpus + [dict(toleration) for toleration in (pods.spot_tolerations if resources.spot else ())]


def _quantity(gib: float) -> str:
    return f"{round(gib * 1024)}Mi"


def label_value(text: str) -> str:
    """`text` as the value of a label; what had to be changed is told apart by a hash."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")
    if safe == text and len(text) <= 63:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[:54]}-{digest}" if safe else digest


def _configuration_faults(uri: str, pods: PodSettings, template: Mapping[str, Any]) -> Iterable[Fault]:
    if not pods.image:
        yield Fault("EVERGREEN_PODS__IMAGE", "is not set", "give the trainer's image, built from trainer/Dockerfile")
    containers = template.get("spec", {}).get("containers", [])
    for container in containers:
        if container.get("name") != TRAINER_CONTAINER:
            # One that does not end by itself would keep the pod, and with it the task, for ever.
            yield Fault(
                f"EVERGREEN_PODS__TEMPLATE: container {container.get('name')!r}",
                "runs beside the trainer",
                f"only {TRAINER_CONTAINER!r} may: make it an initContainer, or leave it out",
            )
    mounted = [PurePosixPath(mount["mountPath"]) for c in containers for mount in c.get("volumeMounts", [])]
    if "://" not in uri and not any(PurePosixPath(uri).is_relative_to(path) for path in mounted):
        yield Fault(
            "EVERGREEN_JOBS",
            f"{uri} is a file of this machine, which no pod can read",
            "name an object store, as s3://bucket/jobs, or mount the folder with EVERGREEN_PODS__TEMPLATE",
        )


def _merge(base: Any, overlay: Any, field: str = "") -> Any:
    """`ours` on top of `base`: what both name is ours, except for volumes, which a template may put elsewhere.

    (The provider's own merge strings lists together: a volume that both name would be there twice, and refused.)
    """
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        both = {key: _merge(base[key], overlay[key], key) for key in base if key in overlay}
        return {**base, **overlay, **both}
    if isinstance(base, list) and isinstance(overlay, list):
        return _merge_lists(base, overlay, field)
    return overlay


_MERGE_KEYS = {"containers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath"}


def _merge_lists(base: list[Any], overlay: list[Any], field: str) -> list[Any]:
    if not (key := _MERGE_KEYS.get(field)):
        return base + [item for item in overlay if item not in base]
    named = {item[key]: item for item in base}
    mine = {item[key]: item for item in overlay}
    if field == "volumes":
        mine |= {name: named[name] for name in mine if name in named}
    if field == "containers":
        mine = {name: _merge(named.get(name), item) for name, item in mine.items()}
    return [item for name, item in named.items() if name not in mine] + list(mine.values())
