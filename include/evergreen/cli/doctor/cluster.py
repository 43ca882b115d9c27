"""Check of the Kubernetes cluster that trains: whether Airflow's account has all permissions of `orchestration`."""

from __future__ import annotations

import json
from typing import Any

from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed, ClockProbe
from evergreen.settings import PodSettings

_REQUIRED_PERMISSIONS = {
    "pods": ("get", "list", "create", "delete"),
    "pods/log": ("get",),
    "events": ("list",),
}


def check_kubernetes(pods: PodSettings) -> CheckPassed:
    """Check that the cluster responds, has the secret, and grants all permissions of docs/guides/kubernetes.md."""
    from kubernetes.client import ApiException, CoreV1Api, VersionApi
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    if not pods.image:
        raise CheckFailedError(
            "EVERGREEN_PODS__IMAGE is not set", "set it to the trainer's image, built from trainer/Dockerfile"
        )
    clock = ClockProbe()
    try:
        client = _client(pods)
        version, _, headers = VersionApi(client).get_code_with_http_info(_request_timeout=10)
        clock_skew = clock.skew_from_header(headers.get("Date"))
        permissions = [(verb, resource) for resource, verbs in _REQUIRED_PERMISSIONS.items() for verb in verbs]
        if missing := [" ".join(pair) for pair in permissions if not _is_allowed(client, pods, *pair)]:
            raise CheckFailedError(
                f"permission denied: {', '.join(missing)}", "grant its account the Role of docs/guides/kubernetes.md"
            )
        if pods.secret and not _has_secret(CoreV1Api(client), pods):
            raise CheckFailedError(
                f"there is no secret {pods.secret}", f"kubectl --namespace {pods.namespace} create secret generic"
            )
    except ConfigException as error:
        raise CheckFailedError(
            f"no cluster is configured: {error}",
            "set EVERGREEN_PODS__CONNECTION to a connection, or KUBECONFIG to a file",
        ) from None
    except ApiException as error:
        raise CheckFailedError(
            f"status {error.status}: {_message(error)}", "renew the account's token or certificate"
        ) from None
    except (HTTPError, OSError) as error:
        raise CheckFailedError(f"does not respond: {error}", "check the address of the cluster in KUBECONFIG") from None
    return CheckPassed(f"Kubernetes {version.git_version}, all permissions granted", clock_skew)


def _client(pods: PodSettings) -> Any:
    """Return a client of the cluster that Airflow's operator uses."""
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


def _is_allowed(client: Any, pods: PodSettings, verb: str, resource: str) -> bool:
    from kubernetes.client import AuthorizationV1Api

    name, _, subresource = resource.partition("/")
    attributes = {"namespace": pods.namespace, "verb": verb, "resource": name, "subresource": subresource}
    review = AuthorizationV1Api(client).create_self_subject_access_review(
        {"spec": {"resourceAttributes": attributes}}, _request_timeout=10
    )
    return bool(review.status.allowed)


def _has_secret(core: Any, pods: PodSettings) -> bool:
    """Return whether the secret exists; True also if this account may not read secrets, which it need not."""
    from kubernetes.client import ApiException

    try:
        core.read_namespaced_secret(pods.secret, pods.namespace, _request_timeout=10)
    except ApiException as error:
        return bool(error.status != 404)
    return True


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
