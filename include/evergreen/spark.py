"""The Spark session of a task: in this process, or at a Spark Connect server, by configuration."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from evergreen.settings import settings

# What Evergreen's results depend on: set on every session, wherever it runs.
SEMANTICS = {
    "spark.sql.session.timeZone": "UTC",
    # Spark's default, INT96, is read as something else or not at all by other engines.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
}

# How Spark runs on one small machine, in this process or as a server that `evergreen up` starts.
# A day of features is small, so what costs is planning and compiling, not computing: the second
# compiler of the JVM and parallel garbage collection cost twice the CPU that they save
# (docs/performance.md), and 200 shuffle partitions would be 200 empty tasks.
EMBEDDED = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


@contextmanager
def session() -> Iterator[SparkSession]:
    """A session with the settings that Evergreen's steps rely on.

    A local one is shared by the steps of this process and ends with it: its JVM takes seconds to start.
    One at a server is ours alone and is released, or a long-lived server would fill with them.
    """
    target = settings().spark
    if target.startswith("sc://"):
        spark = SparkSession.builder.remote(target).create()
        for key, value in SEMANTICS.items():
            spark.conf.set(key, value)
        try:
            yield spark
        finally:
            spark.stop()
    else:
        builder = SparkSession.builder.master(target).appName("evergreen")
        for key, value in (SEMANTICS | EMBEDDED).items():
            builder = builder.config(key, value)
        spark = builder.getOrCreate()
        atexit.register(spark.stop)
        yield spark
