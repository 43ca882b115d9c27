"""Settings from environment variables: all faults at once, by variable, and without secrets."""

from __future__ import annotations

import pytest

from evergreen.errors import SettingsError
from evergreen.settings import parse_host_and_port, redact_url, settings

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def without_cache(monkeypatch: pytest.MonkeyPatch, home: object) -> None:
    settings.cache_clear()


def fault_messages() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings()
    return [str(fault) for fault in caught.value.faults]


def test_settings_names_every_invalid_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_TRAINING_BACKEND", "pods")
    monkeypatch.setenv("EVERGREEN_LAKE", "s3://bucket/lake")
    monkeypatch.setenv("EVERGREEN_PODS__IMAG", "trainer")
    monkeypatch.setenv("EVERGREEN_ONLINE_STORE", "dynamo://:secret@there")
    assert fault_messages() == [
        "EVERGREEN_LAKE: must be a folder: the lake publishes by links and renames, which object stores lack",
        "EVERGREEN_ONLINE_STORE: dynamo:// is not supported: use redis://, rediss://, or a folder for SQLite files",
        "EVERGREEN_TRAINING_BACKEND: Input should be 'process' or 'pod'",
        "EVERGREEN_PODS__IMAG: Extra inputs are not permitted",
    ]


def test_settings_error_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_ONLINE_STORE", "dynamo://:secret@there")
    with pytest.raises(SettingsError) as caught:
        settings()
    assert "secret" not in str(caught.value)


def test_settings_rejects_invalid_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_PODS", "[{")
    [fault] = fault_messages()
    assert 'field "pods"' in fault
    assert fault.endswith("structured settings are JSON")


def test_settings_requires_the_public_key_of_a_signing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_SIGNING_KEY", "/keys/private.pem")
    [fault] = fault_messages()
    assert fault.startswith("EVERGREEN_*: signing_key is set, so set signing_public_key too")


def test_settings_ignores_empty_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAINING", "AIRFLOW", "LEDGER", "PODS__IMAGE"):
        monkeypatch.setenv(f"EVERGREEN_{name}", "")
    config = settings()
    assert (config.training_backend, config.airflow, config.pods.image) == ("process", None, None)
    assert config.ledger == f"{config.home}/ledger"
    assert "airflow" not in config.model_fields_set


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("redis://:p%40w@host:6379/0", "redis://host:6379/0"),
        ("postgresql+psycopg://u:p@/db?host=/run", "postgresql+psycopg:///db?host=/run"),
        ("http://host:8080", "http://host:8080"),
        ("/a/path@home", "/a/path@home"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_redact_url_removes_user_and_password(url: str, redacted: str) -> None:
    assert redact_url(url) == redacted


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("sc://spark:15003", ("spark", 15003)),
        ("sc://spark", ("spark", 15002)),
        ("redis://u:p@host:6379/0", ("host", 6379)),
        ("sc://:1", ("127.0.0.1", 1)),
    ],
)
def test_parse_host_and_port(url: str, address: tuple[str, int]) -> None:
    assert parse_host_and_port(url, 15002) == address
