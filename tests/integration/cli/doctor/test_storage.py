"""Folders and buckets that are right, and each way in which they are not."""

from __future__ import annotations

import os
import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest

from evergreen import ledger
from evergreen.cli.doctor import places
from evergreen.errors import LedgerError
from evergreen.promotion import rules
from evergreen.settings import settings
from support.checks import wrong
from support.s3_server import S3

pytestmark = pytest.mark.integration

LEDGER = "s3://evergreen/ledger"
Usage = namedtuple("Usage", "total used free")


def test_a_folder_that_is_right_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    assert "can be written to" in places.check_folder(tmp_path / "lake").message
    assert list((tmp_path / "lake").iterdir()) == []


def test_a_folder_is_made(tmp_path: Path) -> None:
    assert "can be written to" in places.check_storage(str(tmp_path / "not/yet")).message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    what, way_out = wrong(places.check_folder, tmp_path / "lake")
    assert what == f"user id {os.geteuid()} may not write to {next(tmp_path.glob('*'), tmp_path / 'lake')}"
    assert way_out.startswith("let it: chown -R")


def test_something_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert wrong(places.check_folder, tmp_path / "file")[0] == "cannot be written to: Not a directory"


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    assert wrong(places.check_folder, tmp_path)[0] == "its file system makes no hard links: Operation not supported"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_almost_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10 << 30, 9 << 30, 1 << 30))
    assert wrong(places.check_folder, tmp_path)[0] == "1.0 GiB free, and it should be 2.0 GiB"


def test_a_bucket_that_is_right_is_left_as_it_was(s3: S3) -> None:
    seen = places.check_storage(LEDGER)
    assert seen.message == "may put where there is none, list, read, put, remove"
    assert seen.clock_skew == pytest.approx(0, abs=2)
    assert s3.buckets["evergreen"] == {}


def test_a_store_that_takes_an_object_twice_would_lose_promotions(s3: S3) -> None:
    s3.conditions = "ignored"
    what, way_out = wrong(places.check_bucket, LEDGER)
    assert what == "16 of 16 writers were told that they had put an object where there was none"
    assert "promotions that race would be lost" in way_out


def test_a_store_that_looks_first_and_writes_then_is_found_by_a_race(s3: S3) -> None:
    s3.conditions = "late"
    assert "writers were told that they had put an object" in wrong(places.check_bucket, LEDGER)[0]


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("PUT", "may not put an object where there is none, or read it: Access Denied."),
        ("GET", "may not put an object where there is none, or read it: Access Denied."),
        ("DELETE", "may not remove an object"),
    ],
)
def test_rights_that_are_missing(s3: S3, method: str, what: str) -> None:
    s3.refuses = {method}
    assert wrong(places.check_bucket, LEDGER)[0] == what


def test_a_ledger_from_which_nothing_can_be_removed_is_right(s3: S3) -> None:
    s3.refuses = {"DELETE"}
    assert places.check_storage(LEDGER, append_only=True).message.endswith(
        "may not remove, which is right for a ledger"
    )
    assert len(s3.buckets["evergreen"]) == 1


def test_a_store_that_is_full(s3: S3) -> None:
    s3.full = True
    what, way_out = wrong(places.check_bucket, LEDGER)
    assert "XMinioStorageFull" in what
    assert way_out.endswith("whether the store is up and has space")


def test_a_bucket_that_is_not_there_can_be_made(s3: S3) -> None:
    assert wrong(places.check_bucket, "s3://other/jobs") == (
        "there is no bucket other",
        "make it: `evergreen migrate`, or your store's own tool",
    )
    for _ in range(2):  # also if it is there
        places.ensure_bucket("s3://other/jobs")
    assert "remove" in places.check_bucket("s3://other/jobs").message


def test_a_store_that_does_not_answer(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.url = "http://127.0.0.1:9"
    s3.use(monkeypatch)
    assert "EndpointConnectionError" in wrong(places.check_bucket, LEDGER)[0]


def test_a_store_of_no_known_kind() -> None:
    assert wrong(places.check_bucket, "ftq://x/y") == (
        "Protocol not known: ftq",
        "name a folder, or s3://bucket/folder",
    )


def test_the_chains_of_all_models_are_read(home: Path) -> None:
    ledger.append_decision("flight_delay", "tests", lambda state: rules.decide_freeze(state, "a test"))
    assert places.check_ledger_entries().message.startswith("1 entries of")
    entry = Path(settings().ledger, "flight_delay/000001.json")
    entry.chmod(0o600)
    entry.write_text("{}")
    ledger._open_journal.cache_clear()
    with pytest.raises(LedgerError, match="000001.json: cannot be read"):
        places.check_ledger_entries()
