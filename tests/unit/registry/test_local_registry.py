"""The registry of a local stack: by its server while that runs, and by its folder while it does not. Real MLflow."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.errors import RegistryError, ScoringError, SignatureError
from evergreen.local_services import STACK_FILE
from evergreen.registry import versions
from evergreen.registry.tracking import tracking_uri
from evergreen.settings import settings
from support.ledgers import Book, Candidate

pytestmark = pytest.mark.unit

URI = "mlflow-artifacts:/7/models/m-1/artifacts"


@pytest.fixture
def book(new_book: Callable[[], Book]) -> Book:
    return new_book()


@pytest.fixture
def champion(book: Book) -> Candidate:
    candidate = book.judge(10)
    book.promote(candidate)
    return candidate


def store_at(book: Book, champion: Candidate, uri: str, folder: Path) -> Path:
    """Move the files of the champion, and let MLflow's database say that a server has stored them at a URI."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    book.files(champion).rename(folder)
    with sqlite3.connect(settings().mlflow.get_secret_value().removeprefix("sqlite:///")) as database:
        changed = database.execute(
            "UPDATE model_versions SET source = ?, storage_location = ? WHERE name = ?", (uri, uri, book.model)
        )
    assert changed.rowcount == 1
    return folder


def write_record(url: str) -> None:
    settings().home.mkdir(exist_ok=True)
    (settings().home / STACK_FILE).write_text(json.dumps({"services": {"mlflow": {"url": url}}}))


def test_files_that_a_server_has_stored_are_read_without_it(book: Book, champion: Candidate, home: Path) -> None:
    folder = store_at(book, champion, URI, home / "mlflow-artifacts/7/models/m-1/artifacts")
    with versions.open_champion(book.model) as (copy, version):
        assert str(version.version) == champion.version
        assert (copy / "model.ubj").read_bytes() == (folder / "model.ubj").read_bytes()
        assert not copy.is_relative_to(home)
    (folder / "model.ubj").write_bytes(b"another")
    with pytest.raises(SignatureError, match="model.ubj"), versions.open_champion(book.model):
        pass


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        (URI, "another/7/models/m-1/artifacts"),
        ("mlflow-artifacts://there:5000/7/models/m-1/artifacts", "mlflow-artifacts/7/models/m-1/artifacts"),
        ("mlflow-artifacts:/../secret", "secret"),
    ],
)
def test_files_of_another_server_need_it(book: Book, champion: Candidate, home: Path, uri: str, place: str) -> None:
    store_at(book, champion, uri, home / place)
    with (
        pytest.raises(ScoringError, match=r"is no server: start it by `evergreen up`, or set EVERGREEN_MLFLOW to its"),
        versions.open_champion(book.model),
    ):
        pass


def test_tracking_uri_is_that_of_the_server_that_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERGREEN_MLFLOW", raising=False)
    settings.cache_clear()
    database = f"sqlite:///{home}/mlflow.db"
    assert tracking_uri().get_secret_value() == database
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        write_record(url)
        assert tracking_uri().get_secret_value() == url
        monkeypatch.setenv("EVERGREEN_MLFLOW", "http://there")
        settings.cache_clear()
        assert tracking_uri().get_secret_value() == "http://there", "a setting wins"
    monkeypatch.delenv("EVERGREEN_MLFLOW")
    settings.cache_clear()
    assert tracking_uri().get_secret_value() == database, "it is down, and its record is left"


def test_a_server_that_is_down_is_named_at_once(
    book: Book, champion: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EVERGREEN_MLFLOW", "http://ada:5ecret@127.0.0.1:9")
    settings.cache_clear()
    start = time.monotonic()
    with (
        pytest.raises(RegistryError, match=r"^MLflow is not running at http://127.0.0.1:9: start it"),
        versions.open_champion(book.model),
    ):
        pass
    assert time.monotonic() - start < 30  # MLflow's client tries for minutes
