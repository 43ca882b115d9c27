"""The Spark session of a task, in its process or at a Spark Connect server (`EVERGREEN_SPARK`).

`python -m evergreen.features.spark` runs such a server in a container, as `evergreen up` does on one machine.
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
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


@contextmanager
def spark_session() -> Iterator[SparkSession]:
    """A session with the required settings.

    A local session is shared by the steps of this process and ends with it, because its JVM takes seconds to start.
    A session at a server is private and is released, because a long-lived server would keep all of them.
    """
    target = settings().spark.get_secret_value()
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
        spark = builder.config(map={**REQUIRED_CONF, **LOCAL_CONF}).getOrCreate()
        atexit.register(spark.stop)
        yield spark


def spark_connect_command(address: str, port: int, scratch: Path) -> tuple[list[str], Mapping[str, str]]:
    """Return the command of a Spark Connect server, and its additional environment variables.

    Anybody who can reach the server can run code as its user, unless SPARK_CONNECT_AUTHENTICATE_TOKEN is set.
    """
    root = Path(pyspark.__file__).parent
    conf = {
        **LOCAL_CONF,
        **REQUIRED_CONF,
        # A server that is out of memory would otherwise keep running without responding.
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
