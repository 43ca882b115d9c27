"""The password in EVERGREEN_MLFLOW reaches MLflow, and no message."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from mlflow.exceptions import MlflowException

from evergreen.registry import versions
from evergreen.settings import settings

pytestmark = pytest.mark.unit


@pytest.fixture
def logins(home: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """The Authorization headers that a server gets, to which the settings name the way; it fails every request."""
    headers: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers.append(self.headers["Authorization"])
            self.send_error(400, "Bad")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("EVERGREEN_MLFLOW", f"http://ada:p%2Fw5ecret@127.0.0.1:{server.server_port}")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # to have it restored
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings.cache_clear()
    yield headers
    server.shutdown()
    server.server_close()


def test_registry_client_logs_in_without_showing_the_password(logins: list[str | None]) -> None:
    client = versions.registry_client()
    with pytest.raises(MlflowException) as refused:
        client.get_model_version("m", "1")
    assert logins == [f"Basic {b64encode(b'ada:p/w5ecret').decode()}"]
    assert "5ecret" not in str(refused.value)


def test_an_mlflow_that_is_down_shows_no_password(logins: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_MLFLOW", "http://ada:p%2Fw5ecret@127.0.0.1:9")
    settings.cache_clear()
    with pytest.raises(MlflowException) as down:
        versions.registry_client().get_model_version("m", "1")
    assert "127.0.0.1" in str(down.value)
    assert "5ecret" not in str(down.value)
