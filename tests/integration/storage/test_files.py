"""Errors of an object store name the file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evergreen import storage
from support import s3_server
from support.s3_server import S3

pytestmark = pytest.mark.integration

FILE = "s3://jobs/model/job.json"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server.running("jobs") as server:
        server.use(monkeypatch)
        yield server


def test_put_error_names_the_file(s3: S3) -> None:
    s3.refuses = {"PUT"}
    with pytest.raises(PermissionError) as error:
        storage.put(storage.storage_path(FILE), b"{}")
    assert error.value.__notes__ == [FILE]
