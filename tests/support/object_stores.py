"""Object stores for tests of a lake: our own server, and a real one where EVERGREEN_TEST_S3 has its URL.

A real server is started by whoever runs the tests, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from evergreen import object_store
from support.s3_server import S3, running

REAL_S3 = os.environ.get("EVERGREEN_TEST_S3")
_REAL_BUCKET = "evergreen-tests"
STORES = [
    "own",
    pytest.param("real", marks=pytest.mark.skipif(not REAL_S3, reason="EVERGREEN_TEST_S3 names no server")),
]


@contextmanager
def open_store(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, S3 | None]]:
    """Let the clients of this process use a store; yield the URI of an empty folder in it, and our server."""
    bucket = f"lake-{uuid.uuid4().hex[:12]}"
    object_store.open_bucket.cache_clear()
    try:
        if kind == "real":
            import s3fs

            assert REAL_S3
            monkeypatch.setenv("AWS_ENDPOINT_URL", REAL_S3)
            monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().makedirs(_REAL_BUCKET, exist_ok=True)  # some servers have room for few buckets
            yield f"s3://{_REAL_BUCKET}/{bucket}", None
        else:
            with running(bucket) as server:
                server.use(monkeypatch)
                yield f"s3://{bucket}/lake", server
    finally:
        object_store.open_bucket.cache_clear()
