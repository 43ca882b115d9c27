"""Settings as the environment gives them: all faults at once, by variable, and no secret among the words."""

from __future__ import annotations

import pytest

from evergreen.errors import SettingsError
from evergreen.settings import redact_url, settings

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, home: object) -> None:
    settings.cache_clear()


def told() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings()
    return [str(fault) for fault in caught.value.faults]


def test_all_that_is_wrong_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_TRAINING_BACKEND", "pods")
    monkeypatch.setenv("EVERGREEN_LAKE", "s3://bucket/lake")
    monkeypatch.setenv("EVERGREEN_PODS__IMAG", "trainer")
    monkeypatch.setenv("EVERGREEN_ONLINE_STORE", "dynamo://:secret@there")
    assert told() == [
        "EVERGREEN_LAKE: is no folder: the lake publishes by links and renames, which object stores lack",
        "EVERGREEN_ONLINE_STORE: is of kind dynamo: give redis://, rediss://, or the path of a SQLite file",
        "EVERGREEN_TRAINING_BACKEND: Input should be 'process' or 'pod'",
        "EVERGREEN_PODS__IMAG: Extra inputs are not permitted",
    ]


def test_a_secret_in_an_address_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_ONLINE_STORE", "dynamo://:secret@there")
    with pytest.raises(SettingsError) as caught:
        settings()
    assert "secret" not in str(caught.value)


def test_what_should_be_json_and_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_PODS", "[{")
    [fault] = told()
    assert 'field "pods"' in fault
    assert fault.endswith("structured settings are JSON")


def test_keys_that_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_SIGNING_KEY", "/keys/private.pem")
    [fault] = told()
    assert fault.startswith("EVERGREEN_*: signing_key is set, so set signing_public_key too")


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAINING", "AIRFLOW", "LEDGER", "PODS__IMAGE"):
        monkeypatch.setenv(f"EVERGREEN_{name}", "")
    now = settings()
    assert (now.training_backend, now.airflow, now.pods.image) == ("process", None, None)
    assert now.ledger == f"{now.home}/ledger"
    assert "airflow" not in now.model_fields_set


@pytest.mark.parametrize(
    ("url", "without"),
    [
        ("redis://:p%40w@host:6379/0", "redis://host:6379/0"),
        ("postgresql+psycopg://u:p@/db?host=/run", "postgresql+psycopg:///db?host=/run"),
        ("http://host:8080", "http://host:8080"),
        ("/a/path@home", "/a/path@home"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_addresses_are_shown_without_who_may_use_them(url: str, without: str) -> None:
    assert redact_url(url) == without
