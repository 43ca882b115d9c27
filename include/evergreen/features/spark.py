"""The Spark session of a task: in this process, or at a Spark Connect server, by configuration.

`python -m evergreen.features.spark` becomes such a server, as `evergreen up` starts it, for a container.
"""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

from evergreen.settings import settings

# What Evergreen's results depend on: set on every session, wherever it runs.
REQUIRED_CONF = {
    "spark.sql.session.timeZone": "UTC",
    # Spark's default, INT96, is read as something else or not at all by other engines.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
}

# How Spark runs on one small machine, in this process or as a server of ours.
# A day of features is small, so what costs is planning and compiling, not computing: the second
# compiler of the JVM and parallel garbage collection cost twice the CPU that they save
# (docs/performance.md), and 200 shuffle partitions would be 200 empty tasks.
LOCAL_CONF = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


@contextmanager
def spark_session() -> Iterator[SparkSession]:
    """A session with the settings that Evergreen's steps rely on.

    A local one is shared by the steps of this process and ends with it: its JVM takes seconds to start.
    One at a server is ours alone and is released, or a long-lived server would fill with them.
    """
    target = settings().spark
    if target.startswith("sc://"):
        spark = SparkSession.builder.remote(target).create()
        for key, value in REQUIRED_CONF.items():
            spark.conf.set(key, value)
        try:
            yield spark
        finally:
            spark.stop()
    else:
        builder = SparkSession.builder.master(target).appName("evergreen")
        for key, value in (REQUIRED_CONF | LOCAL_CONF).items():
            builder = builder.config(key, value)
        spark = builder.getOrCreate()
        atexit.register(spark.stop)
        yield spark


def spark_connect_command(address: str, port: int, scratch: Path) -> tuple[list[str], Mapping[str, str]]:
    """The command of a Spark Connect server, and the variables that it needs besides those there are.

    Whoever reaches it can run code as its user, unless SPARK_CONNECT_AUTHENTICATE_TOKEN is set for both.
    """
    root = Path(pyspark.__file__).parent
    conf = {
        **LOCAL_CONF,
        **REQUIRED_CONF,
        # Without memory it would live on and answer nobody.
        "spark.driver.extraJavaOptions": f"{LOCAL_CONF['spark.driver.extraJavaOptions']} -XX:+ExitOnOutOfMemoryError",
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
