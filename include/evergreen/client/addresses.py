"""Addresses of Airflow, MLflow and Spark: those of the settings, else those of the local stack."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from evergreen.local_services import local_service_urls
from evergreen.settings import SecretUrl, settings

SPARK_TOKEN_FILE = "spark/token"  # noqa: S105 - a path
"""File in the home folder with the token of the local Spark Connect server."""
SPARK_TOKEN_VARIABLE = "SPARK_CONNECT_AUTHENTICATE_TOKEN"  # noqa: S105 - a name
"""Environment variable in which Spark's servers and clients expect the token."""


@dataclass(frozen=True)
class ServiceAddresses:
    """URLs of the services, including user and password, and of their UIs."""

    airflow: SecretUrl
    mlflow: SecretUrl
    spark: SecretUrl

    @property
    def airflow_ui(self) -> str:
        return settings().airflow_ui or str(self.airflow)

    @property
    def mlflow_ui(self) -> str:
        return settings().mlflow_ui or str(self.mlflow)


def service_addresses() -> ServiceAddresses | None:
    """Return the addresses of the services; None if Airflow is neither configured nor running locally."""
    urls = local_service_urls()
    return resolve_addresses(urls) if settings().airflow or "airflow" in urls else None


def resolve_addresses(local_urls: Mapping[str, str]) -> ServiceAddresses:
    """Return the addresses of the services; where the settings name none, those in `local_urls`."""
    config = settings()
    configured = config.model_fields_set
    local = {name: SecretUrl(url) for name, url in local_urls.items()}
    return ServiceAddresses(
        airflow=config.airflow or local["airflow"],
        mlflow=config.mlflow if "mlflow" in configured else local.get("mlflow", config.mlflow),
        spark=config.spark if "spark" in configured else local.get("spark", config.spark),
    )


def spark_token(url: str) -> str | None:
    """Return the token for the Spark Connect server at `url`: that of the environment, or of the local stack."""
    if SPARK_TOKEN_VARIABLE in os.environ or local_service_urls().get("spark") != url:
        return os.environ.get(SPARK_TOKEN_VARIABLE)
    return (settings().home / SPARK_TOKEN_FILE).read_text()
