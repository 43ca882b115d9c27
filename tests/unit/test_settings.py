"""Settings from environment variables: all faults at once, by variable, and without secrets."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evergreen import settings as settings_module
from evergreen.errors import SettingsError
from evergreen.settings import Settings, parse_host_and_port, redact_url, settings

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
    monkeypatch.setenv("EVERGREEN_LAKE", "hdfs://bucket/lake")
    monkeypatch.setenv("EVERGREEN_PODS__IMAG", "trainer")
    monkeypatch.setenv("EVERGREEN_ONLINE_STORE", "dynamo://:secret@there")
    assert fault_messages() == [
        "EVERGREEN_LAKE: hdfs:// is not supported: use a folder, s3://, gs:// or az://",
        "EVERGREEN_ONLINE_STORE: dynamo:// is not supported: use redis://, rediss://, or a folder for SQLite files",
        "EVERGREEN_TRAINING_BACKEND: Input should be 'process' or 'pod'",
        "EVERGREEN_PODS__IMAG: Extra inputs are not permitted",
    ]


def make_project(folder: Path) -> Path:
    (folder / "models/x").mkdir(parents=True)
    (folder / "feature_repo").mkdir()
    (folder / "feature_repo/feature_store.yaml").touch()
    return folder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment with the wheel, and no variable."""
    for name in [name for name in os.environ if name.startswith("EVERGREEN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(settings_module, "IS_CHECKOUT", False)


@pytest.mark.parametrize("place", [".", "models/x"])
def test_python_finds_the_project_that_it_runs_in(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    project = make_project(tmp_path / "Ä b")
    monkeypatch.chdir(project / place)
    assert (settings().project, settings().models) == (project, (project / "models",))
    assert (settings().home, settings().feature_repo) == (project / ".evergreen", project / "feature_repo")


def test_a_project_that_is_named_wins(installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_project(tmp_path / "here"))
    monkeypatch.setenv("EVERGREEN_PROJECT", str(make_project(tmp_path / "named")))
    assert settings().project == tmp_path / "named"


@pytest.mark.parametrize("missing", ["models/x", "feature_repo/feature_store.yaml", None])
def test_python_outside_of_a_project_says_how_to_name_one(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str | None
) -> None:
    folder = tmp_path / "elsewhere"
    make_project(folder if missing else tmp_path / "project")
    folder.mkdir(exist_ok=True)
    if missing == "models/x":
        shutil.rmtree(folder / "models")
    elif missing:
        (folder / missing).unlink()
    monkeypatch.chdir(folder)
    [message] = fault_messages()
    assert message.startswith(f"EVERGREEN_PROJECT: is not set, and {folder} is in no project")
    assert message.endswith("→ set it to the project's folder, or run in that folder")
    monkeypatch.chdir(make_project(tmp_path / "project two"))
    assert settings().project == tmp_path / "project two", "an error is not kept"


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


def test_spark_conf_is_what_spark_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    conf = {"spark.executor.instances": 2, "spark.dynamicAllocation.enabled": True, "spark.executor.memory": "2g"}
    monkeypatch.setenv("EVERGREEN_SPARK_CONF", json.dumps(conf))
    assert settings().spark_conf == {
        "spark.executor.instances": "2",
        "spark.dynamicAllocation.enabled": "true",
        "spark.executor.memory": "2g",
    }


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("executor.memory", "is no setting of Spark"),
        ("spark.master", "set EVERGREEN_SPARK instead"),
        ("spark.sql.session.timeZone", "changes results"),
        ("spark.sql.ansi.enabled", "changes results"),
        ("spark.hadoop.fs.s3a.access.key", "holds a secret"),
        ("spark.hadoop.fs.s3a.bucket.lake.secret.key", "holds a secret"),
        ("spark.hadoop.fs.s3a.session.token", "holds a secret"),
        ("spark.hadoop.fs.azure.account.key.shop.dfs.core.windows.net", "holds a secret"),
        ("spark.authenticate.secret", "holds a secret"),
        ("spark.ssl.keyPassword", "holds a secret"),
        ("spark.executorEnv.AWS_SECRET_ACCESS_KEY", "holds a secret"),
        ("spark.kubernetes.authenticate.oauthToken", "holds a secret"),
    ],
)
def test_spark_conf_is_checked(key: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_SPARK_CONF", json.dumps({key: "hidden"}))
    [fault] = fault_messages()
    assert fault.startswith(f"EVERGREEN_SPARK_CONF: {key} ")
    assert problem in fault
    assert "hidden" not in fault


@pytest.mark.parametrize(
    "key",
    [
        "spark.kubernetes.authenticate.oauthTokenFile",
        "spark.kubernetes.executor.secretKeyRef.AWS_SECRET_ACCESS_KEY",
        "spark.kubernetes.executor.secrets.lake",
        "spark.hadoop.hadoop.security.credential.provider.path",
        "spark.sql.shuffle.partitions",
        "spark.jars.packages",
    ],
)
def test_spark_conf_may_name_secrets(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_SPARK_CONF", json.dumps({key: "lake:key"}))
    assert settings().spark_conf == {key: "lake:key"}


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
        ("postgresql:///db?user=u&password=p%40w&host=/run", "postgresql:///db?user=u&password=***&host=/run"),
        ("sc://spark:15002/;use_ssl=true;token=abc", "sc://spark:15002/;use_ssl=true;token=***"),
        ("http://u:p[w@host:8080/x", "http://host:8080/x"),
    ],
)
def test_redact_url_removes_user_and_password(url: str, redacted: str) -> None:
    assert redact_url(url) == redacted


URL_SETTINGS = {
    "airflow": "http://admin:{}@host:8080/base",
    "spark": "sc://host:15002/;token={}",
    "mlflow": "http://user:{}@host:5000",
    "feast_registry": "postgresql+psycopg://user:{}@host/feast?sslmode=require",
    "online_store": "rediss://:{}@host:6379/0",
}


@given(password=st.text(min_size=3), name=st.sampled_from(sorted(URL_SETTINGS)))
def test_no_text_of_the_settings_has_a_password(password: str, name: str) -> None:
    secret = "p4" + quote(password.encode("utf-8", "ignore"), safe="") + "w"
    url = URL_SETTINGS[name].format(secret)
    config = Settings.model_validate({name: url})
    value = getattr(config, name)
    assert value.get_secret_value() == url
    texts = [repr(config), str(config), config.model_dump_json(), repr(config.model_dump()), repr(vars(config))]
    for text in (*texts, repr(value), str(value), f"{value}", f"{value} {[value]!r}", repr([value])):
        assert secret not in text
    assert "host" in str(value), "people see which server it is"


@given(password=st.text("abc/?#@[]:%", min_size=1, max_size=12), name=st.sampled_from(sorted(URL_SETTINGS)))
def test_a_password_that_is_not_encoded_is_never_shown(password: str, name: str) -> None:
    secret = f"p4{password}w"
    try:
        text = repr(Settings.model_validate({name: URL_SETTINGS[name].format(secret)}))
    except ValidationError as error:
        text = str(error)
    assert "p4" not in text


@pytest.mark.parametrize("password", ["p/w", "p@w", "p?w", "p#w", "1/w", "[w"])
def test_a_password_that_is_not_encoded_is_refused(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("EVERGREEN_MLFLOW", f"http://user:{password}@host:5000")
    [message] = fault_messages()
    assert message.startswith("EVERGREEN_MLFLOW: its user or password has one of / ? # @ [ ] in it: write it percent-")


@pytest.mark.parametrize("name", ["AIRFLOW_UI", "MLFLOW_UI", "LEDGER", "JOBS"])
def test_a_url_that_is_shown_has_no_password(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"EVERGREEN_{name}", "sftp://user:secret@host/folder")
    [message] = fault_messages()
    assert message.startswith(f"EVERGREEN_{name}: must have no user or password")
    assert "secret" not in message


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


def test_retention_needs_an_age_of_leftovers_below_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_RETENTION__MODELS_DAYS", "3")
    [fault] = fault_messages()
    assert fault.startswith("EVERGREEN_RETENTION: models_days is set, so set leftovers_days too")
    monkeypatch.setenv("EVERGREEN_RETENTION__LEFTOVERS_DAYS", "4")
    [fault] = fault_messages()
    assert "models_days is 3, less than leftovers_days" in fault
    monkeypatch.setenv("EVERGREEN_RETENTION__MODELS_DAYS", "4")
    assert settings().retention.expiry_days("models") == 4
