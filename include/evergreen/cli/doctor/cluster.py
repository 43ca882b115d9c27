"""The cluster that trains: whether Airflow's account may do there what `orchestration.operators.pod` does."""

from __future__ import annotations

import json
from typing import Any

from evergreen.cli.doctor.seen import CheckFailedError, CheckPassed, ClockProbe
from evergreen.settings import PodSettings

_REQUIRED_PERMISSIONS = {
    "pods": ("get", "list", "create", "delete"),
    "pods/log": ("get",),
    "events": ("list",),
}


def check_kubernetes(pods: PodSettings) -> CheckPassed:
    """The cluster answers, the namespace is there, and all rights of docs/kubernetes.md are given."""
    from kubernetes.client import ApiException, CoreV1Api, VersionApi
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    if not pods.image:
        raise CheckFailedError(
            "EVERGREEN_PODS__IMAGE is not set", "give the trainer's image, built from trainer/Dockerfile"
        )
    clock = ClockProbe()
    try:
        client = _client(pods)
        known, _, headers = VersionApi(client).get_code_with_http_info(_request_timeout=10)
        ahead = clock.skew_from_header(headers.get("Date"))
        if missing := [right for right in _permissions() if not _is_allowed(client, pods.namespace, *right)]:
            names = ", ".join(f"{verb} {resource}" for resource, verb in missing)
            raise CheckFailedError(f"may not {names}", "give its account the Role of docs/kubernetes.md")
        if pods.secret and pods.secret not in _has_secret(CoreV1Api(client), pods):
            raise CheckFailedError(
                f"has no secret {pods.secret}", f"kubectl --namespace {pods.namespace} create secret generic"
            )
    except ConfigException as error:
        raise CheckFailedError(
            f"no cluster is known: {error}",
            "name a connection in EVERGREEN_PODS__CONNECTION, or a file in KUBECONFIG",
        ) from None
    except ApiException as error:
        raise CheckFailedError(
            f"answers {error.status}: {_message(error)}", "renew the account's token or certificate"
        ) from None
    except (HTTPError, OSError) as error:
        raise CheckFailedError(f"does not answer: {error}", "check the address of the cluster in KUBECONFIG") from None
    return CheckPassed(f"Kubernetes {known.git_version}, all rights are given", ahead)


def _client(pods: PodSettings) -> Any:
    """As Airflow's operator finds its cluster."""
    if pods.connection:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

        return KubernetesHook(conn_id=pods.connection).get_conn()
    from kubernetes.client import ApiClient
    from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

    try:
        load_incluster_config()
    except ConfigException:
        load_kube_config()
    return ApiClient()


def _permissions() -> list[tuple[str, str]]:
    return [(resource, verb) for resource, verbs in _REQUIRED_PERMISSIONS.items() for verb in verbs]


def _is_allowed(client: Any, namespace: str, resource: str, verb: str) -> bool:
    from kubernetes.client import AuthorizationV1Api

    name, _, sub = resource.partition("/")
    asked = {"namespace": namespace, "verb": verb, "resource": name, "subresource": sub}
    review = AuthorizationV1Api(client).create_self_subject_access_review(
        {"spec": {"resourceAttributes": asked}}, _request_timeout=10
    )
    return bool(review.status.allowed)


def _has_secret(core: Any, pods: PodSettings) -> tuple[str | None, ...]:
    """The secret's name if it is there, or if this account may not know: it need not."""
    from kubernetes.client import ApiException

    try:
        core.read_namespaced_secret(pods.secret, pods.namespace, _request_timeout=10)
    except ApiException as error:
        return () if error.status == 404 else (pods.secret,)
    return (pods.secret,)


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
