"""Addresses of Airflow, MLflow and Spark: those of the settings, else those of the local stack."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from evergreen.errors import EvergreenError
from evergreen.settings import parse_host_and_port, redact_url, settings

STACK_FILE = "stack.json"
"""File in the home folder in which `evergreen up` records the services that it has started."""


@dataclass(frozen=True)
class ServiceAddresses:
    """URLs of the services, including user and password, and of their UIs."""

    airflow: str
    mlflow: str
    spark: str

    @property
    def airflow_ui(self) -> str:
        return settings().airflow_ui or redact_url(self.airflow)

    @property
    def mlflow_ui(self) -> str:
        return settings().mlflow_ui or redact_url(self.mlflow)


def service_addresses() -> ServiceAddresses | None:
    """Return the addresses of the services; None if Airflow is neither configured nor running locally."""
    urls = local_service_urls()
    return resolve_addresses(urls) if settings().airflow or "airflow" in urls else None


def resolve_addresses(local_urls: Mapping[str, str]) -> ServiceAddresses:
    """Return the addresses of the services; where the settings name none, those in `local_urls`."""
    config = settings()
    configured = config.model_fields_set
    return ServiceAddresses(
        airflow=config.airflow or local_urls["airflow"],
        mlflow=config.mlflow if "mlflow" in configured else local_urls.get("mlflow", config.mlflow),
        spark=config.spark if "spark" in configured else local_urls.get("spark", config.spark),
    )


def local_service_urls() -> dict[str, str]:
    """Return name and URL of each service of the local stack that accepts connections."""
    file = settings().home / STACK_FILE
    try:
        urls = {name: service["url"] for name, service in json.loads(file.read_text())["services"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EvergreenError(f"{file} is not readable: delete it, then run `evergreen down`") from None
    return {name: url for name, url in urls.items() if accepts_connections(*parse_host_and_port(url), timeout=1)}


def accepts_connections(host: str, port: int, timeout: float) -> bool:
    """Return whether a server accepts TCP connections within `timeout` seconds."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True
