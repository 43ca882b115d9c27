"""Spark with a client of S3, for tests: what it needs, and builds of features that go through a store.

EVERGREEN_TEST_S3A_JARS names a folder with the jars of `hadoop-aws`, and EVERGREEN_TEST_S3 a server
(`support.object_stores`).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.object_stores import REAL_S3, open_store

JARS = os.environ.get("EVERGREEN_TEST_S3A_JARS")
COMMITTER = "spark-hadoop-cloud"  # the jar with the committer that completes uploads

needs_s3a = [
    pytest.mark.skipif(not JARS, reason="EVERGREEN_TEST_S3A_JARS names no folder with the jars of hadoop-aws"),
    pytest.mark.skipif(not REAL_S3, reason="EVERGREEN_TEST_S3 names no server"),
]


def s3a_conf(without: str = "", **options: str) -> str:
    """Return the value of EVERGREEN_SPARK_CONF with the jars, but those named `without`."""
    assert JARS
    jars = [str(jar) for jar in sorted(Path(JARS).glob("*.jar")) if not (without and jar.name.startswith(without))]
    return json.dumps({"spark.jars": ",".join(jars), **options})


@contextmanager
def s3_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URI of an empty folder in the real server, which the clients of this process and its children use."""
    with open_store("real", monkeypatch) as (uri, _):
        yield f"{uri}/{uuid.uuid4().hex[:8]}"
