"""Where MLflow is. Importing this module does not load it."""

from __future__ import annotations

from evergreen.local_services import local_service_urls
from evergreen.settings import SecretUrl, settings


def tracking_uri() -> SecretUrl:
    """Return the tracking URI of the settings; where they name none, that of the local stack's server while it runs."""
    config = settings()
    url = None if "mlflow" in config.model_fields_set else local_service_urls().get("mlflow")
    return SecretUrl(url) if url else config.mlflow
