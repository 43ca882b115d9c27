"""The pod that makes one attempt at a training job, as the JSON that Kubernetes takes. Pure: no cluster is asked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from evergreen.errors import Fault, SpecError
from evergreen.settings import Pods
from evergreen.spec.model import Model, Resources
from evergreen.training import attempt
from evergreen.training.job import Job

CONTAINER = "trainer"
JOB, MADE_FROM = "evergreen/job", "evergreen/made-from"  # annotations
RUN = "evergreen/run"  # label
GRACE_S = 120
"""What a container has to write its last checkpoint; clouds give a spot node between 30 s and this."""

_GPU = "nvidia.com/gpu"
_USER = 10001


def name(model: str, fingerprint: str) -> str:
    """Name of the pod of this job: a name can be had once, so the API server itself keeps a second pod away."""
    return f"{model[:46].replace('_', '-')}-{fingerprint[:16]}"


def manifest(
    model: Model, job: Job, uri: str, run: str, pods: Pods, template: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The pod of the job at `uri`, for Airflow's `run`, on top of `template`.

    It keeps the *restricted* Pod Security Standard. A template may add what it likes: it is the cluster's owner
    who writes it.

    Raises:
        SpecError: the settings or the template do not make a pod that could train; all faults are listed.
    """
    base = template or {}
    if faults := [*_faults(uri, pods, base)]:
        raise SpecError(f"the pod that trains {model.name}", faults)
    nobodys = _merged(base, _pod(model, job, uri, "", pods))
    whole = _merged(base, _pod(model, job, uri, run, pods))
    whole["metadata"]["annotations"][MADE_FROM] = hashlib.sha256(
        json.dumps(nobodys, sort_keys=True).encode()
    ).hexdigest()
    return whole


def template(file: Path) -> Mapping[str, Any]:
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


def _pod(model: Model, job: Job, uri: str, run: str, pods: Pods) -> dict[str, Any]:
    resources = model.resources
    labels = {"model": model.name, "team": model.owner, "run": run, "job": job.fingerprint[:16]}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": round(resources.minutes * 60),
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,  # training asks nothing of the cluster
        "enableServiceLinks": False,
        # A first process ignores SIGTERM until it has a handler: Python's imports would sit out the grace period.
        "shareProcessNamespace": True,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": _node_selector(resources, pods),
        "tolerations": _tolerations(resources, pods),
        "containers": [_container(model, uri, run, pods)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _gib(resources.shm_gib)}},
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
            "name": name(model.name, job.fingerprint),
            "namespace": pods.namespace,
            "labels": {
                "app.kubernetes.io/name": "evergreen-trainer",
                **{f"evergreen/{key}": label(value) for key, value in labels.items()},
            },
            "annotations": {
                JOB: uri,
                "evergreen/run": run,
                # Autoscalers move pods to empty a node; this one would lose what it did since its checkpoint.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
            },
        },
        "spec": spec,
    }


def _container(model: Model, uri: str, run: str, pods: Pods) -> dict[str, Any]:
    resources = model.resources
    variables = {
        **attempt.environment(run, model.owner, _allotted(resources, pods)),
        "HOME": "/tmp",  # noqa: S108 - libraries cache their compiled kernels there, and all else is read-only
        # Where NVIDIA's runtime is the default, a container that asks for no GPU would see all of them.
        **({} if resources.gpu else {"NVIDIA_VISIBLE_DEVICES": "void"}),
    }
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": pods.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "evergreen.training", uri],
        "env": [
            # Of the pod, so that two that follow each other under one name are two attempts.
            {"name": attempt.ID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            *({"name": key, "value": value} for key, value in variables.items()),
        ],
        "resources": _amounts(resources),
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


def _amounts(resources: Resources) -> dict[str, Any]:
    """Memory and GPUs are had or not, so what is asked for is the limit. CPUs are shared by weight: a limit would
    only halt a trainer for parts of each 100 ms while its node has CPUs to spare. (A template may set one.)"""
    firm = {"memory": _gib(resources.memory_gib)} | ({_GPU: str(resources.gpu)} if resources.gpu else {})
    return {"requests": {"cpu": str(resources.cpu), **firm}, "limits": firm}


def _allotted(resources: Resources, pods: Pods) -> attempt.Allotted:
    return attempt.Allotted(
        cpu=resources.cpu,
        memory_gib=resources.memory_gib,
        gpu=resources.gpu,
        gpu_type=resources.gpu_type,
        spot=resources.spot and bool(pods.spot_tolerations or pods.spot_node_selector),
    )


def _node_selector(resources: Resources, pods: Pods) -> dict[str, str]:
    return {
        **(pods.spot_node_selector if resources.spot else {}),
        **({pods.gpu_type_label: resources.gpu_type} if resources.gpu_type else {}),
        **resources.node_selector,
    }


def _tolerations(resources: Resources, pods: Pods) -> list[dict[str, Any]]:
    of_gpus = [{"key": _GPU, "operator": "Exists"}] if resources.gpu else []  # GPU nodes keep others away so
    return of_gpus + [dict(toleration) for toleration in (pods.spot_tolerations if resources.spot else ())]


def _gib(amount: float) -> str:
    return f"{round(amount * 1024)}Mi"


def label(text: str) -> str:
    """`text` as the value of a label; what had to be changed is told apart by a hash."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")
    if safe == text and len(text) <= 63:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[:54]}-{digest}" if safe else digest


def _faults(uri: str, pods: Pods, template: Mapping[str, Any]) -> Iterable[Fault]:
    if not pods.image:
        yield Fault(
            "EVERGREEN_PODS__IMAGE", "is not set", "give the trainer's image, built from trainer/Dockerfile"
        )
    containers = template.get("spec", {}).get("containers", [])
    for container in containers:
        if container.get("name") != CONTAINER:
            # One that does not end by itself would keep the pod, and with it the task, for ever.
            yield Fault(
                f"EVERGREEN_PODS__TEMPLATE: container {container.get('name')!r}",
                "runs beside the trainer",
                f"only {CONTAINER!r} may: make it an initContainer, or leave it out",
            )
    mounted = [PurePosixPath(mount["mountPath"]) for c in containers for mount in c.get("volumeMounts", [])]
    if "://" not in uri and not any(PurePosixPath(uri).is_relative_to(path) for path in mounted):
        yield Fault(
            "EVERGREEN_JOBS",
            f"{uri} is a file of this machine, which no pod can read",
            "name an object store, as s3://bucket/jobs, or mount the folder with EVERGREEN_PODS__TEMPLATE",
        )


def _merged(base: Any, ours: Any, of: str = "") -> Any:
    """`ours` on top of `base`: what both name is ours, except for volumes, which a template may put elsewhere.

    (The provider's own merge strings lists together: a volume that both name would be there twice, and refused.)
    """
    if isinstance(base, Mapping) and isinstance(ours, Mapping):
        both = {key: _merged(base[key], ours[key], key) for key in base if key in ours}
        return {**base, **ours, **both}
    if isinstance(base, list) and isinstance(ours, list):
        return _merged_lists(base, ours, of)
    return ours


_KEYS = {"containers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath"}


def _merged_lists(base: list[Any], ours: list[Any], of: str) -> list[Any]:
    if not (key := _KEYS.get(of)):
        return base + [item for item in ours if item not in base]
    named = {item[key]: item for item in base}
    mine = {item[key]: item for item in ours}
    if of == "volumes":
        mine |= {name: named[name] for name in mine if name in named}
    if of == "containers":
        mine = {name: _merged(named.get(name), item) for name, item in mine.items()}
    return [item for name, item in named.items() if name not in mine] + list(mine.values())
