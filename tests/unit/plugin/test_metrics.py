"""The route of the metrics: who may read it, and what happens while it is read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from evergreen.plugin import metrics
from evergreen.plugin.metrics import CachedPage, add_metrics_route
from evergreen.settings import settings
from support import tills

pytestmark = pytest.mark.unit

TOKEN = "correct-horse-battery"


@pytest.fixture
def client(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> TestClient:
    tills.write_model(tmp_path, monkeypatch, use_models)
    metrics._registry.cache_clear()
    app = FastAPI()
    add_metrics_route(app)
    return TestClient(app)


def set_token(monkeypatch: pytest.MonkeyPatch, file: Path, token: bytes = f"{TOKEN}\n".encode()) -> None:
    file.write_bytes(token)
    monkeypatch.setenv("EVERGREEN_METRICS_TOKEN", str(file))
    settings.cache_clear()


def status(client: TestClient, authorization: str | bytes | None = f"Bearer {TOKEN}") -> int:
    return client.get("/metrics", headers={"Authorization": authorization} if authorization else {}).status_code


def test_nobody_reads_metrics_without_a_token(client: TestClient) -> None:
    assert status(client) == status(client, None) == status(client, "Bearer ") == 404


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"\xff" * 20])
def test_a_file_without_a_token_opens_nothing(
    client: TestClient,
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        set_token(monkeypatch, tmp_path / "token", content)
        assert status(client, f"Bearer {content.decode(errors='replace').strip()}".encode()) == 404
    assert "nobody reads metrics" in caplog.text
    (tmp_path / "token").unlink()
    assert status(client) == 404


def test_only_the_token_is_let_in(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_token(monkeypatch, tmp_path / "token")
    refused = [None, TOKEN, "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}"]
    assert {status(client, header) for header in [*refused, "Bearer ü".encode()]} == {403}
    assert status(client) == status(client, f"bearer {TOKEN}") == 200


def test_a_token_is_replaced_without_a_restart(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_token(monkeypatch, tmp_path / "token")
    assert status(client) == 200
    (tmp_path / "token").write_text("another-token-as-long")
    assert status(client) == 403
    assert status(client, "Bearer another-token-as-long") == 200


def test_the_page_is_what_prometheus_reads(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_token(monkeypatch, tmp_path / "token")
    response = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert 'evergreen_champion{model="tills",team="tests"} 0.0' in response.text
    assert "python_info" not in response.text


def test_a_page_is_rendered_once_for_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = iter([b"first", b"second"])
    page = CachedPage(lambda: next(pages))
    assert [page.read() for _ in range(5)] == [b"first"] * 5
    now = metrics.time.monotonic()
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now + metrics._CACHE_S + 1)
    assert page.read() == b"second"


def test_requests_do_not_wait_long_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PATIENCE_S", 0.05)
    started, released = Event(), Event()

    def render() -> bytes:
        started.set()
        released.wait(10)
        return b"page"

    page = CachedPage(render)
    thread = Thread(target=page.read)
    thread.start()
    try:
        assert started.wait(5)
        assert page.read() is None
    finally:
        released.set()
        thread.join()
    assert page.read() == b"page"


def test_a_page_that_fails_is_rendered_again() -> None:
    outcomes = iter([OSError("the store is away"), b"page"])

    def render() -> bytes:
        outcome = next(outcomes)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    page = CachedPage(render)
    with pytest.raises(OSError, match="away"):
        page.read()
    assert page.read() == b"page"
