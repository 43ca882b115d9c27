"""The checks of folders and buckets, and each way in which they fail."""

from __future__ import annotations

import os
import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest

from evergreen import ledger
from evergreen.cli.doctor import storage
from evergreen.errors import LedgerError
from evergreen.promotion import rules
from evergreen.settings import settings
from support.checks import failure
from support.s3_server import S3

pytestmark = pytest.mark.integration

LEDGER = "s3://evergreen/ledger"
Usage = namedtuple("Usage", "total used free")


def test_check_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    assert "writable" in storage.check_folder(tmp_path / "lake").message
    assert list((tmp_path / "lake").iterdir()) == []


def test_check_storage_creates_a_folder(tmp_path: Path) -> None:
    assert "writable" in storage.check_storage(str(tmp_path / "not/yet")).message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_check_folder_reports_a_denied_permission(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    problem, fix = failure(storage.check_folder, tmp_path / "lake")
    assert (
        problem
        == f"permission denied: user ID {os.geteuid()} cannot write to {next(tmp_path.glob('*'), tmp_path / 'lake')}"
    )
    assert fix.startswith("chown -R")


def test_check_folder_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert failure(storage.check_folder, tmp_path / "file")[0] == "is not writable: Not a directory"


def test_check_folder_needs_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    assert failure(storage.check_folder, tmp_path)[0] == "its file system has no hard links: Operation not supported"
    assert list(tmp_path.iterdir()) == []


def test_check_folder_reports_a_disk_that_is_almost_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10 << 30, 9 << 30, 1 << 30))
    assert failure(storage.check_folder, tmp_path)[0] == "1.0 GiB free, at least 2.0 GiB recommended"


def test_check_storage_leaves_nothing_in_a_bucket(s3: S3) -> None:
    outcome = storage.check_storage(LEDGER)
    assert outcome.message == "can create if absent, list, read, overwrite, remove"
    assert outcome.clock_skew == pytest.approx(0, abs=2)
    assert s3.buckets["evergreen"] == {}


def test_check_bucket_refuses_a_store_that_ignores_conditions(s3: S3) -> None:
    s3.conditions = "ignored"
    problem, fix = failure(storage.check_bucket, LEDGER)
    assert problem == "16 of 16 concurrent writers created the same object"
    assert "concurrent promotions would be lost" in fix


def test_check_bucket_refuses_a_store_that_checks_too_early(s3: S3) -> None:
    s3.conditions = "late"
    assert "concurrent writers created the same object" in failure(storage.check_bucket, LEDGER)[0]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("PUT", "permission denied: create an object if absent, or read it: Access Denied."),
        ("GET", "permission denied: create an object if absent, or read it: Access Denied."),
        ("DELETE", "permission denied: remove an object"),
    ],
)
def test_check_bucket_names_a_missing_permission(s3: S3, method: str, message: str) -> None:
    s3.refuses = {method}
    assert failure(storage.check_bucket, LEDGER)[0] == message


def test_check_storage_accepts_a_ledger_without_removal(s3: S3) -> None:
    s3.refuses = {"DELETE"}
    assert storage.check_storage(LEDGER, append_only=True).message.endswith(
        "cannot remove, as recommended for a ledger"
    )
    assert len(s3.buckets["evergreen"]) == 1


def test_check_bucket_reports_a_full_store(s3: S3) -> None:
    s3.full = True
    problem, fix = failure(storage.check_bucket, LEDGER)
    assert "XMinioStorageFull" in problem
    assert fix.endswith("whether the store is running and has space")


def test_ensure_bucket_creates_a_missing_bucket(s3: S3) -> None:
    assert failure(storage.check_bucket, "s3://other/jobs") == (
        "there is no bucket other",
        "create it by `evergreen migrate`, or by your store's own tool",
    )
    for _ in range(2):  # also if it exists
        storage.ensure_bucket("s3://other/jobs")
    assert "remove" in storage.check_bucket("s3://other/jobs").message


def test_check_bucket_reports_a_store_that_is_down(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.url = "http://127.0.0.1:9"
    s3.use(monkeypatch)
    assert "EndpointConnectionError" in failure(storage.check_bucket, LEDGER)[0]


def test_check_bucket_refuses_an_unknown_scheme() -> None:
    assert failure(storage.check_bucket, "ftq://x/y") == (
        "Unsupported filesystem: 'ftq'",
        "set a folder, or s3://bucket/folder",
    )


def test_check_ledger_entries_reads_all_chains(home: Path) -> None:
    ledger.append_decision("flight_delay", "tests", lambda state: rules.decide_freeze(state, "a test"))
    assert storage.check_ledger_entries().message.startswith("1 entries of")
    entry = Path(settings().ledger, "flight_delay/0000/000001.json")
    entry.chmod(0o600)
    entry.write_text("{}")
    ledger._open_journal.cache_clear()
    with pytest.raises(LedgerError, match="000001.json: cannot be read"):
        storage.check_ledger_entries()
