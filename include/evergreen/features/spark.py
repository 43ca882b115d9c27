"""The Spark session of a task: in its process, of a cluster, or at a Spark Connect server (`EVERGREEN_SPARK`).

`python -m evergreen.features.spark` runs such a server in a container, as `evergreen up` does on one machine.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyspark
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from evergreen import object_store
from evergreen.errors import Fault
from evergreen.settings import settings, variable_name

# Settings that results depend on, set on every session.
REQUIRED_CONF = {
    "spark.sql.session.timeZone": "UTC",
    # Other engines misread Spark's default, INT96, or cannot read it.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
}

# Settings of Spark on one small machine, in the task's process or as a server. A day of features is small, so most
# time goes to planning and compiling: the second compiler of the JVM and parallel garbage collection cost twice the
# CPU that they save (docs/performance.md), and 200 shuffle partitions would be 200 empty tasks.
LOCAL_CONF = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": "1",
}

# What gives a Spark of pip, which has Hadoop 3.5.0, its client of S3, without the AWS SDK's bundle of half a GiB.
_AWS_SDK = "2.36.2"
_AWS_MODULES = ("s3", "s3-transfer-manager", "sts", "apache-client", "netty-nio-client")
S3A_CONF = {
    "spark.jars.packages": ",".join(
        [
            "org.apache.hadoop:hadoop-aws:3.5.0",
            *(f"software.amazon.awssdk:{module}:{_AWS_SDK}" for module in _AWS_MODULES),
        ]
    ),
    "spark.jars.excludes": "software.amazon.awssdk:bundle",
}

_S3A = "s3a://"
_S3A_CLASS = "org.apache.hadoop.fs.s3a.S3AFileSystem"
_PROVIDERS = "fs.s3a.aws.credentials.provider"
# First what the machines of executors have of their own.
_KEY_PROVIDERS = (
    "software.amazon.awssdk.auth.credentials.EnvironmentVariableCredentialsProvider",
    "org.apache.hadoop.fs.s3a.TemporaryAWSCredentialsProvider",
    "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider",
)
# Profiles and roles, as boto3 finds them.
_ROLE_PROVIDERS = ("software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider",)

# Files of S3 appear when the uploads of their parts are completed, as the job commits: nothing is renamed, which is
# a copy in S3. Its class is in org.apache.spark:spark-hadoop-cloud.
_UPLOADING_PROTOCOL = "org.apache.spark.internal.io.cloud.PathOutputCommitProtocol"
_UPLOADING_CONF = {
    "spark.sql.sources.commitProtocolClass": _UPLOADING_PROTOCOL,
    "spark.sql.parquet.output.committer.class": "org.apache.spark.internal.io.cloud.BindingParquetOutputCommitter",
}
_UPLOADING_OPTIONS = {"fs.s3a.committer.name": "magic", "fs.s3a.committer.magic.enabled": "true"}
# Files of a task become visible with those of all others, not before.
_RENAMING_OPTIONS = {"mapreduce.fileoutputcommitter.algorithm.version": "1"}

_MISSING_METHOD = "UNEXPECTED_STATIC_METHOD"


@contextmanager
def spark_session() -> Iterator[SparkSession]:
    """A session with the required settings.

    A session of a master is shared by the steps of this process and ends with it, because its JVM takes seconds to
    start. A session at a server is private and is released, because a long-lived server would keep all of them.
    """
    target = settings().spark.get_secret_value()
    if target.startswith("sc://"):
        spark = SparkSession.builder.remote(target).create()
        for key, value in {**settings().spark_conf, **REQUIRED_CONF}.items():
            if key in REQUIRED_CONF or spark.conf.isModifiable(key):  # the others are those of the server
                spark.conf.set(key, value)
        try:
            yield spark
        finally:
            spark.stop()
    else:
        builder = SparkSession.builder.master(target).appName("evergreen")
        spark = builder.config(map=_session_conf(is_local=target.startswith("local"))).getOrCreate()
        atexit.register(spark.stop)
        if not target.startswith("local") and f"spark.hadoop.{_PROVIDERS}" not in settings().spark_conf:
            # Here, because what the builder is given is seen on the command line of the JVM.
            for key, value in object_store.s3a_keys().items():
                spark._jsc.hadoopConfiguration().set(key, value)  # noqa: SLF001 - Python has no other way
        yield spark


def write_parquet(frame: DataFrame, uri: str, partition_columns: Sequence[str]) -> None:
    """Compute `frame`, and write it to the new folder `uri`; its files appear when all of them are complete."""
    writer = frame.write.partitionBy(*partition_columns)
    session = frame.sparkSession
    if not uri.startswith(_S3A) or not has_class(session, _UPLOADING_PROTOCOL):
        writer.options(**_RENAMING_OPTIONS).parquet(uri)
        return
    try:
        for key, value in _UPLOADING_CONF.items():
            session.conf.set(key, value)
        writer.options(**_UPLOADING_OPTIONS).parquet(uri)
    finally:
        for key in _UPLOADING_CONF:
            session.conf.unset(key)


def has_class(session: SparkSession, name: str) -> bool:
    """Return whether the driver of a session, here or at a server, can load a class of Java."""
    refusals = logging.getLogger("SQLQueryContextLogger")  # of this process; one is expected
    was_disabled, refusals.disabled = refusals.disabled, True
    try:
        # A query that Spark refuses in any case: it names what is missing, the class or the method.
        _ = session.sql(f"SELECT reflect('{name}', 'none')").schema
    except PySparkException as error:
        return _MISSING_METHOD in (error.getCondition() or "")
    finally:
        refusals.disabled = was_disabled
    return False


def explain_missing_client(error: BaseException) -> Fault | None:
    """Return what to do about an error that says that Spark has no client of a store; None of any other error."""
    match = re.search(r"ClassNotFoundException: Class (\S+) not found|No FileSystem for scheme \"?(\w+)", str(error))
    if not match:
        return None
    fix = f"name the connector of the store in spark.jars.packages of {variable_name('spark_conf')}"
    if match[1] == _S3A_CLASS:
        fix = f"set {variable_name('spark_conf')}='{json.dumps(S3A_CONF)}'"
    fault = f"Spark has no client of this store: {match[1] or match[2]} is missing"
    return Fault(str(settings().spark_exchange), fault, f"{fix}; a Spark Connect server has it in its own environment")


def _session_conf(*, is_local: bool) -> dict[str, Any]:
    """Return the settings of a session in this process, or of a server that this process starts."""
    providers = _KEY_PROVIDERS if object_store.s3a_keys() else _ROLE_PROVIDERS
    s3a = {**object_store.s3a_settings(), _PROVIDERS: ",".join(providers)}
    return {
        "spark.ui.enabled": "false",  # it would listen on all addresses of a task's machine, for anybody
        "spark.ui.showConsoleProgress": "false",
        **(LOCAL_CONF if is_local else {}),
        **{f"spark.hadoop.{key}": value for key, value in s3a.items()},
        **settings().spark_conf,
        **REQUIRED_CONF,
    }


def spark_connect_command(address: str, port: int, scratch: Path) -> tuple[list[str], Mapping[str, str]]:
    """Return the command of a Spark Connect server, and its additional environment variables.

    It has the settings of this process (`EVERGREEN_SPARK_CONF`, `AWS_…`). Anybody who can reach the server can run code
    as its user, unless SPARK_CONNECT_AUTHENTICATE_TOKEN is set.
    """
    root = Path(pyspark.__file__).parent
    conf = _session_conf(is_local=True)
    conf |= {
        # A server that is out of memory would otherwise keep running without responding.
        "spark.driver.extraJavaOptions": f"{conf['spark.driver.extraJavaOptions']} -XX:+ExitOnOutOfMemoryError",
        "spark.connect.grpc.binding.address": address,
        "spark.connect.grpc.binding.port": str(port),
        "spark.connect.grpc.port.maxRetries": "0",
        "spark.local.dir": str(scratch / "scratch"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
    }
    command = [
        str(root / "bin" / "spark-submit"),
        *("--class", "org.apache.spark.sql.connect.service.SparkConnectServer"),
        *("--name", "evergreen", "--master", "local[*]"),
        *(part for key, value in conf.items() for part in ("--conf", f"{key}={value}")),
        "spark-internal",
    ]
    return command, {"SPARK_HOME": str(root), "PYSPARK_PYTHON": sys.executable}


if __name__ == "__main__":
    _command, _variables = spark_connect_command("0.0.0.0", 15002, Path(tempfile.gettempdir()))  # noqa: S104 - a container's own
    os.execve(_command[0], _command, {**os.environ, **_variables})  # noqa: S606 - no shell is wanted
