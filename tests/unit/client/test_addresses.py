"""Addresses of services from the settings and from the record of the local stack."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from evergreen.client.addresses import ServiceAddresses, service_addresses
from evergreen.errors import EvergreenError
from evergreen.local_services import STACK_FILE, local_service_urls
from evergreen.settings import SecretUrl, settings
from evergreen_local.processes import ProcessIdentity
from evergreen_local.stack import ServiceRecord, StackRecord

pytestmark = pytest.mark.unit


@pytest.fixture
def url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def record(home: Path, url: str) -> None:
    """MLflow and Airflow are running, Spark has died."""
    home.mkdir()
    urls = {"mlflow": url, "airflow": url, "spark": "sc://127.0.0.1:9"}
    process = ProcessIdentity(pid=7, start_time=12.34)
    services = {name: ServiceRecord(process=process, url=at, log=home / name) for name, at in urls.items()}
    StackRecord(services=services).write(home)


def test_local_service_urls_without_a_record(home: Path) -> None:
    assert local_service_urls() == {}


def test_local_service_urls_leaves_out_services_that_died(record: None, url: str) -> None:
    assert local_service_urls() == {"mlflow": url, "airflow": url}


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"services": {"mlflow": 7}})])
def test_local_service_urls_names_an_invalid_record(home: Path, text: str) -> None:
    home.mkdir()
    (home / STACK_FILE).write_text(text)
    with pytest.raises(EvergreenError, match=r"stack.json is not readable: delete it"):
        local_service_urls()


def test_service_addresses_without_an_airflow(home: Path) -> None:
    assert service_addresses() is None


def test_service_addresses_prefers_the_settings(record: None, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert service_addresses() == ServiceAddresses(SecretUrl(url), SecretUrl(url), settings().spark)
    monkeypatch.setenv("EVERGREEN_AIRFLOW", "http://admin:secret@a:8080")
    monkeypatch.setenv("EVERGREEN_SPARK", "sc://s:15002")
    settings.cache_clear()
    addresses = service_addresses()
    assert addresses == ServiceAddresses(
        SecretUrl("http://admin:secret@a:8080"), SecretUrl(url), SecretUrl("sc://s:15002")
    )
    assert addresses.airflow_ui == "http://a:8080"
