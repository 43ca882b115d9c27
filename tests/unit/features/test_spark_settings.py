"""Settings of Spark: what is derived, what a deployment names, and that no secret is on a command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyspark
import pytest

from evergreen.features.spark import S3A_CONF, explain_missing_client, spark_connect_command
from evergreen.settings import settings

pytestmark = pytest.mark.unit

AWS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN")


@pytest.fixture(autouse=True)
def no_aws(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in (*AWS, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server_conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Return the settings on the command line of a Spark Connect server, with these variables of the environment."""

    def read(**variables: str) -> dict[str, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()
        command, environment = spark_connect_command("127.0.0.1", 15002, tmp_path)
        assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & environment.keys()
        return dict(part.split("=", 1) for part in command if part.startswith("spark.") and "=" in part)

    return read


def test_a_server_has_the_settings_of_its_environment(server_conf: Callable[..., dict[str, str]]) -> None:
    assert server_conf()["spark.driver.memory"] == "1g"
    conf = server_conf(EVERGREEN_SPARK_CONF='{"spark.driver.memory": "3g", "spark.jars": "/a.jar,/b.jar"}')
    assert (conf["spark.driver.memory"], conf["spark.jars"]) == ("3g", "/a.jar,/b.jar")
    assert conf["spark.sql.session.timeZone"] == "UTC"


def test_s3a_gets_the_store_of_the_lake_and_no_keys(server_conf: Callable[..., dict[str, str]]) -> None:
    assert "spark.hadoop.fs.s3a.endpoint" not in server_conf()
    providers = "spark.hadoop.fs.s3a.aws.credentials.provider"
    assert server_conf()[providers].endswith(".DefaultCredentialsProvider")
    conf = server_conf(
        AWS_ENDPOINT_URL="http://s3:9000",
        AWS_ACCESS_KEY_ID="an-id",
        AWS_SECRET_ACCESS_KEY="a-key",
        AWS_SESSION_TOKEN="st",
    )
    assert conf["spark.hadoop.fs.s3a.endpoint"] == "http://s3:9000"
    assert conf["spark.hadoop.fs.s3a.endpoint.region"] == "us-east-1"
    assert conf["spark.hadoop.fs.s3a.path.style.access"] == "true"
    assert conf[providers].startswith("software.amazon.awssdk.auth.credentials.EnvironmentVariableCredentialsProvider,")
    assert not {"an-id", "a-key", "st"} & set(conf.values())
    conf = server_conf(AWS_VIRTUAL_HOSTED_STYLE_REQUEST="true", AWS_REGION="eu-west-1")
    assert conf["spark.hadoop.fs.s3a.path.style.access"] == "false"
    assert conf["spark.hadoop.fs.s3a.endpoint.region"] == "eu-west-1"
    named = server_conf(EVERGREEN_SPARK_CONF=json.dumps({providers: "com.example.Provider"}))
    assert named[providers] == "com.example.Provider"


def test_a_missing_client_is_explained() -> None:
    error = Exception(
        "An error occurred.\n: java.lang.ClassNotFoundException: Class org.apache.hadoop.fs.s3a.S3AFileSystem not found"
    )
    fault = explain_missing_client(error)
    assert fault
    assert "org.apache.hadoop:hadoop-aws" in fault.fix
    assert "EVERGREEN_SPARK_CONF" in fault.fix
    other = explain_missing_client(Exception('No FileSystem for scheme "gs"'))
    assert other
    assert "gs is missing" in other.problem
    assert explain_missing_client(Exception("Connection refused")) is None


def test_the_named_packages_are_those_of_the_spark_that_is_installed() -> None:
    [hadoop] = Path(pyspark.__file__).parent.glob("jars/hadoop-client-api-*.jar")
    version = hadoop.stem.removeprefix("hadoop-client-api-")
    assert S3A_CONF["spark.jars.packages"].startswith(f"org.apache.hadoop:hadoop-aws:{version},")
