"""The ledger in an object store whose conditional puts are atomic, whatever words it has for "there is one already"."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from evergreen.ledger import PromotionsFrozen
from evergreen.ledger.journal import Journal, LedgerConflictError, create_object_if_absent
from support import s3_server
from support.s3_server import S3

pytestmark = pytest.mark.integration

WRITERS, ROUNDS = 16, 5
UNWANTED = PromotionsFrozen(reason="a test")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server.running("evergreen") as server:
        server.use(monkeypatch)
        yield server


def opened() -> AbstractFileSystem:
    files, _ = url_to_fs("s3://evergreen", use_listings_cache=False, skip_instance_cache=True)
    return files


# S3 names the condition that does not hold; MinIO says only that one does not; S3 may also find another put under way.
@pytest.mark.parametrize("words", ["condition named", "condition not named", "conflict"])
def test_of_many_writers_one_is_told_that_it_was_the_one(s3: S3, words: str) -> None:
    s3.words = words
    clients = [opened() for _ in range(WRITERS)]
    for number in range(ROUNDS):
        together = Barrier(WRITERS)

        def write(writer: int, number: int = number, together: Barrier = together) -> bool:
            together.wait()
            return create_object_if_absent(clients[writer], f"evergreen/ledger/{number}", b"%d" % writer)

        with ThreadPoolExecutor(WRITERS) as pool:
            won = [writer for writer, mine in enumerate(pool.map(write, range(WRITERS))) if mine]
        assert len(won) == 1
        assert s3.buckets["evergreen"][f"ledger/{number}"] == b"%d" % won[0]


def test_a_put_that_was_done_and_sent_again_is_found(s3: S3) -> None:
    files = opened()
    assert create_object_if_absent(files, "evergreen/one", b"mine")
    assert create_object_if_absent(files, "evergreen/one", b"mine")
    assert not create_object_if_absent(files, "evergreen/one", b"another's")


@pytest.mark.parametrize("fault", ["refuses", "full"])
def test_a_store_that_does_not_take_it_is_no_lost_race(s3: S3, fault: str) -> None:
    s3.refuses, s3.full = ({"PUT"} if fault == "refuses" else set()), fault == "full"
    with pytest.raises(OSError, match="Access Denied|StorageFull"):
        create_object_if_absent(opened(), "evergreen/one", b"mine")
    assert s3.buckets["evergreen"] == {}


def test_a_journal_in_the_bucket(s3: S3) -> None:
    one, other = (Journal("flight_delay", "s3://evergreen/ledger") for _ in range(2))
    seen = other.read()
    first = one.append(one.read(), "one", UNWANTED)
    with pytest.raises(LedgerConflictError):
        other.append(seen, "other", UNWANTED)
    assert other.read().entries == (first,)
    assert list(s3.buckets["evergreen"]) == ["ledger/flight_delay/000001.json"]


def test_a_journal_that_may_not_remove_needs_no_more(s3: S3) -> None:
    s3.refuses = {"DELETE"}
    journal = Journal("flight_delay", "s3://evergreen/ledger")
    journal.append(journal.read(), "one", UNWANTED)
    assert journal.read().head_number == 1
