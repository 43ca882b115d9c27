"""Builds the pod of one attempt at a training job, as JSON for Kubernetes. Pure: no cluster is contacted."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from evergreen.errors import Fault, SpecError
from evergreen.settings import PodSettings
from evergreen.spec.model import ModelSpec
from evergreen.training.attempt import (
    ATTEMPT_ID_VARIABLE,
    THREAD_VARIABLES,
    ResourceAllocation,
    attempt_environment,
)
from evergreen.training.job import Job

TRAINER_CONTAINER = "trainer"
JOB_ANNOTATION, SPEC_HASH_ANNOTATION = "evergreen/job", "evergreen/spec-hash"
RUN_LABEL = "evergreen/run"
GRACE_PERIOD_S = 120
"""Time for a container to write its last checkpoint; clouds give a spot node between 30 s and this."""

_GPU_RESOURCE = "nvidia.com/gpu"
_USER_ID = 10001
_MERGE_KEYS = {"containers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath"}


def pod_name(model: str, fingerprint: str) -> str:
    """Return the name of this job's pod. Names are unique, so the API server itself prevents a second pod."""
    return f"{model[:46].replace('_', '-')}-{fingerprint[:16]}"


def pod_manifest(
    model: ModelSpec, job: Job, uri: str, dag_run: str, pods: PodSettings, template: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the pod of the job at `uri` for the Airflow run `dag_run`, merged into `template`.

    It meets the *restricted* Pod Security Standard. The template may add anything: the cluster's owner writes it.

    Raises:
        SpecError: the settings or the template do not make a valid pod; all faults are listed.
    """
    base = _with_messages_of_init_containers(template or {})
    if faults := [*_configuration_faults(uri, pods, base)]:
        raise SpecError(f"the pod that trains {model.name}", faults)
    manifest = _merge(base, _trainer_pod(model, job, uri, dag_run, pods))
    same_for_all_runs = _merge(base, _trainer_pod(model, job, uri, "", pods))
    spec_hash = hashlib.sha256(json.dumps(same_for_all_runs, sort_keys=True).encode()).hexdigest()
    manifest["metadata"]["annotations"][SPEC_HASH_ANNOTATION] = spec_hash
    return manifest


def load_pod_template(file: Path) -> Mapping[str, Any]:
    """Read the pod template from this YAML file; a SpecError if it is missing, or holds no pod."""
    try:
        template = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        fault = Fault(str(file), str(error), "correct EVERGREEN_PODS__TEMPLATE")
        raise SpecError("the pod template", [fault]) from None
    is_mapping = isinstance(template, Mapping) and isinstance(template.get("spec", {}), Mapping)
    if not is_mapping or template.get("kind", "Pod") != "Pod":
        raise SpecError("the pod template", [Fault(str(file), "holds no pod", "write one with `kind: Pod`")])
    return template


def _with_messages_of_init_containers(template: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the template with init containers whose last lines Kubernetes reports when they fail."""
    containers = template.get("spec", {}).get("initContainers")
    if not containers:
        return template
    containers = [{"terminationMessagePolicy": "FallbackToLogsOnError", **container} for container in containers]
    return {**template, "spec": {**template["spec"], "initContainers": containers}}


def _trainer_pod(model: ModelSpec, job: Job, uri: str, dag_run: str, pods: PodSettings) -> dict[str, Any]:
    resources = model.resources
    labels = {"model": model.name, "team": model.owner, "run": dag_run, "job": job.fingerprint[:16]}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": round(resources.timeout_minutes * 60),
        "terminationGracePeriodSeconds": GRACE_PERIOD_S,
        "automountServiceAccountToken": False,  # training does not call the Kubernetes API
        "enableServiceLinks": False,
        # Process 1 ignores SIGTERM until it has a handler: Python would import through the whole grace period.
        "shareProcessNamespace": True,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": {
            **(pods.spot_node_selector if resources.spot else {}),
            **({pods.gpu_type_label: resources.gpu_type} if resources.gpu_type else {}),
            **resources.node_selector,
        },
        "tolerations": [
            *([{"key": _GPU_RESOURCE, "operator": "Exists"}] if resources.gpu else []),  # the usual taint of GPU nodes
            *map(dict, pods.spot_tolerations if resources.spot else ()),
        ],
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
                # Autoscalers move pods to empty a node; this one would lose its work since the last checkpoint.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
            },
        },
        "spec": spec,
    }


def _container(model: ModelSpec, uri: str, dag_run: str, pods: PodSettings) -> dict[str, Any]:
    resources = model.resources
    spot = resources.spot and bool(pods.spot_tolerations or pods.spot_node_selector)
    limits = {"memory": _quantity(resources.memory_gib)}
    if resources.gpu:
        limits[_GPU_RESOURCE] = str(resources.gpu)
    variables = {
        **attempt_environment(dag_run, model.owner, ResourceAllocation.from_resources(resources, spot=spot)),
        **THREAD_VARIABLES,
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
            # The pod's uid, so that two pods that follow each other under one name are two attempts.
            {"name": ATTEMPT_ID_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            *({"name": key, "value": value} for key, value in variables.items()),
        ],
        # CPUs are shared by weight: a limit would only stop a trainer for parts of each 100 ms while its node has idle
        # CPUs. (A template may set one.)
        "resources": {"requests": {"cpu": str(resources.cpu), **limits}, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
        # For a container that dies without a message, Kubernetes reports the last lines of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108
    }
    if pods.secret:
        container["envFrom"] = [{"secretRef": {"name": pods.secret}}]
    return container


def _quantity(gib: float) -> str:
    return f"{round(gib * 1024)}Mi"


def label_value(text: str) -> str:
    """Return `text` as the value of a label; a hash keeps values distinct that had to be changed."""
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
            # A container that does not end by itself would keep the pod, and so the task, running for ever.
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
    """Return `overlay` merged into `base`. The overlay wins, except for volumes, which a template may redefine.

    (The provider's own merge concatenates lists: a volume named by both would appear twice, and be rejected.)
    """
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        merged = {key: _merge(base[key], overlay[key], key) for key in base if key in overlay}
        return {**base, **overlay, **merged}
    if not (isinstance(base, list) and isinstance(overlay, list)):
        return overlay
    if not (key := _MERGE_KEYS.get(field)):
        return base + [item for item in overlay if item not in base]
    base_items = {item[key]: item for item in base}
    items = {item[key]: item for item in overlay}
    if field == "volumes":
        items |= {name: base_items[name] for name in items if name in base_items}
    if field == "containers":
        items = {name: _merge(base_items.get(name), item) for name, item in items.items()}
    return [item for name, item in base_items.items() if name not in items] + list(items.values())
