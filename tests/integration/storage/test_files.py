"""Errors of an object store name the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

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


def test_what_a_pod_wrote_is_read_up_to_a_size(s3: S3, tmp_path: Path) -> None:
    root = storage.storage_path("s3://jobs/model")
    content = bytes(range(256)) * 2**14  # 4 MiB
    storage.put(root / "output/model.ubj", content)
    assert storage.read_untrusted(root / "output/model.ubj", root) == content
    assert storage.read_untrusted(root / "output/model.ubj", root, len(content)) == content
    with pytest.raises(OSError, match="has more than 1,024 bytes"):
        storage.read_untrusted(root / "output/model.ubj", root, 1024)
    digest = storage.download(root / "output/model.ubj", tmp_path / "model.ubj", root)
    assert digest == storage.file_sha256(tmp_path / "model.ubj") == hashlib.sha256(content).hexdigest()
    storage.put(root / "empty", b"")
    assert storage.read_untrusted(root / "empty", root, 10) == b""
    with pytest.raises(FileNotFoundError):
        storage.read_untrusted(root / "absent", root, 10)
    with pytest.raises(FileExistsError):
        storage.download(root / "empty", tmp_path / "model.ubj", root)
