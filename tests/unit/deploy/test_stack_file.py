"""Invariants of docker-compose.yaml, and of what docker-compose.celery.yaml changes of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from evergreen.features.spark import S3A_CONF
from evergreen.settings import ENV_PREFIX, REPOSITORY, Settings, variable_name
from evergreen_local.services import shared_airflow_environment

pytestmark = pytest.mark.unit

TEXT = (REPOSITORY / "docker-compose.yaml").read_text()
STACK: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
CELERY_TEXT = (REPOSITORY / "docker-compose.celery.yaml").read_text()
CELERY: dict[str, Any] = yaml.safe_load(CELERY_TEXT)
WORKERS = ["worker-1", "worker-2"]
SERVERS = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}
MONITORING = [name for name, service in SERVICES.items() if service.get("profiles") == ["monitoring"]]
SECRET = re.compile(r"\$\{(\w+)(:\?[^}]*|:-[^}]*)?\}")


def mebibytes(amount: str) -> int:
    return int(amount[:-1]) * {"m": 1, "g": 1024}[amount[-1]]


def test_memory_limits_fit_8_gib() -> None:
    total = sum(mebibytes(service["mem_limit"]) for service in SERVERS.values())
    assert total + mebibytes(SERVICES["cli"]["mem_limit"]) <= 8192
    assert mebibytes(SERVICES["migrate"]["mem_limit"]) <= 8192 - sum(
        mebibytes(SERVICES[name]["mem_limit"]) for name in ("postgres", "redis", "s3", "spark")
    )


def test_memory_limits_with_celery_fit_8_gib() -> None:
    limits = {name: service["mem_limit"] for name, service in SERVICES.items() if name != "migrate"}
    limits |= {name: service["mem_limit"] for name, service in CELERY["services"].items() if "mem_limit" in service}
    assert limits.keys() == {*SERVERS, "cli", *WORKERS}
    assert sum(mebibytes(limit) for name, limit in limits.items() if name not in MONITORING) <= 8192


def volumes_of(service: dict[str, Any]) -> set[str]:
    """Named volumes, without folders of the host."""
    return {volume.partition(":")[0] for volume in service.get("volumes", []) if re.match(r"[\w-]+:", volume)}


def test_services_share_no_volume_but_the_logs_of_airflow() -> None:
    used = [volume for name in SERVERS for volume in sorted(volumes_of(SERVICES[name]))]
    assert {volume for volume in used if used.count(volume) > 1} == {"logs"}
    assert set(used) == set(STACK["volumes"])


def test_workers_share_no_volume() -> None:
    one, other = (volumes_of(CELERY["services"][name]) for name in WORKERS)
    assert one
    assert other
    assert not one & other
    assert not (one | other) & set(STACK["volumes"])
    assert one | other == set(CELERY["volumes"])
    # Compose lets these replace what is mounted there in the service that they extend.
    replaced = [volume for name in WORKERS for volume in CELERY["services"][name]["volumes"]]
    assert {volume.partition(":")[2] for volume in replaced} == {"/opt/airflow/logs"}
    extended = {volume.rsplit(":")[1] for volume in SERVICES["scheduler"]["volumes"] if volume.startswith("logs:")}
    assert extended == {"/opt/airflow/logs"}


def test_all_of_airflow_knows_the_workers() -> None:
    common = CELERY["x-celery"]
    for name, service in CELERY["services"].items():
        assert common.items() <= service["environment"].items(), name
    assert {name for name in CELERY["services"] if name not in WORKERS} == {
        name for name, service in SERVERS.items() if "AIRFLOW__CORE__FERNET_KEY" in service.get("environment", {})
    }
    slots = [int(CELERY["services"][name]["environment"]["AIRFLOW__CELERY__WORKER_CONCURRENCY"]) for name in WORKERS]
    assert int(common["AIRFLOW__CORE__PARALLELISM"]) == sum(slots)
    for name in WORKERS:
        assert CELERY["services"][name]["hostname"] == name
        assert CELERY["services"][name]["extends"] == {"file": "docker-compose.yaml", "service": "scheduler"}


def test_ports_are_published_on_loopback() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(ports) == ["mlflow", "api-server", *MONITORING]
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)


@pytest.mark.parametrize("name", SERVERS)
def test_servers_restart_and_have_a_health_check(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service or service["image"] == "evergreen:stack"  # whose image has one
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    image = re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", SERVICES[name]["image"])
    assert ":" in image
    assert not image.endswith(":latest")


def test_only_one_service_builds_the_image() -> None:
    assert [name for name, service in SERVICES.items() if "build" in service] == ["migrate"]


def test_secrets_have_no_default_and_are_written_by_up() -> None:
    script = (REPOSITORY / "deploy/compose").read_text()
    match = re.search(r"SECRETS=\(([^)]*)\)", script)
    assert match
    required = {name for name, rest in SECRET.findall(TEXT + CELERY_TEXT) if rest.startswith(":?")}
    assert required == set(match[1].split())
    with_default = {name for name, rest in SECRET.findall(TEXT + CELERY_TEXT) if not rest.startswith(":?")}
    assert not [name for name in with_default if re.search("PASSWORD|SECRET_KEY|TOKEN|FERNET|JWT", name)]


def test_passwords_are_passed_only_to_services_that_need_them() -> None:
    def services_with(secret: str) -> set[str]:
        return {name for name, service in SERVICES.items() if f"${{{secret}" in str(service)}

    assert services_with("POSTGRES_PASSWORD") == {"postgres"}
    assert services_with("MLFLOW_DB_PASSWORD") == {"postgres", "migrate", "mlflow"}
    assert services_with("AIRFLOW_PASSWORD") == {"api-server", "cli"}
    assert services_with("METRICS_TOKEN") == {"api-server", "prometheus"}
    assert services_with("GRAFANA_PASSWORD") == {"grafana"}
    assert "AIRFLOW__" not in str(SERVICES["mlflow"]["environment"])
    assert SERVICES["spark"]["environment"] == STACK["x-s3"]


def test_every_evergreen_variable_is_a_setting() -> None:
    known = {variable_name(name) for name in Settings.model_fields} | {"EVERGREEN_PRELOAD"}
    variables = {
        name.partition("__")[0]
        for service in SERVICES.values()
        for name in (service.get("environment") or {})
        if name.startswith(ENV_PREFIX)
    }
    assert variables <= known
    assert {name for name in shared_airflow_environment() if name.startswith(ENV_PREFIX)} <= known


def test_spark_network_has_only_its_clients() -> None:
    assert STACK["networks"]["spark"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if "spark" in service.get("networks", [])} == {
        "spark",
        "s3",
        "scheduler",
        "cli",
    }
    assert SERVICES["spark"]["networks"] == ["spark"]


def test_the_image_has_the_packages_that_spark_needs_for_s3() -> None:
    dockerfile = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    assert re.findall(r"^ARG SPARK_PACKAGES=(.*)$", dockerfile, re.MULTILINE) == [S3A_CONF["spark.jars.packages"]]
    assert f'EXCLUDED = "{S3A_CONF["spark.jars.excludes"]}"' in (REPOSITORY / "deploy" / "spark-jars").read_text()


def test_monitoring_starts_only_if_its_profile_is_chosen() -> None:
    assert MONITORING == ["prometheus", "alertmanager", "grafana"]
    mounted = {volume.split(":")[0] for name in MONITORING for volume in SERVICES[name]["volumes"] if volume[0] == "."}
    assert len(mounted) == 6
    assert not [path for path in mounted if not (REPOSITORY / path).exists()]
