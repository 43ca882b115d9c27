"""What is told of a store that does not do what it is asked for."""

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


def test_a_refusal_says_which_file_it_is_about(s3: S3) -> None:
    s3.refuses = {"PUT"}
    with pytest.raises(PermissionError) as told:
        storage.put(storage.storage_path(FILE), b"{}")
    assert told.value.__notes__ == [FILE]
