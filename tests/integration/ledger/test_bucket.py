"""The ledger in an object store with atomic conditional puts, however the store reports that an object exists."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from upath import UPath

from evergreen import storage
from evergreen.ledger import PromotionsFrozen
from evergreen.ledger.journal import Journal, LedgerConflictError
from support import s3_server
from support.s3_server import S3

pytestmark = pytest.mark.integration

WRITERS, ROUNDS = 16, 5
FROZEN = PromotionsFrozen(reason="a test")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server.running("evergreen") as server:
        server.use(monkeypatch)
        yield server


def own_client() -> UPath:
    """Return the bucket with a client of its own, which the paths in it share once it exists."""
    bucket = UPath("s3://evergreen", use_listings_cache=False, skip_instance_cache=True)
    assert bucket.fs
    return bucket


# S3 names the condition that does not hold; MinIO says only that one does not; S3 may also find another put under way.
@pytest.mark.parametrize("words", ["condition named", "condition not named", "conflict"])
def test_create_if_absent_succeeds_for_one_of_many_writers(s3: S3, words: str) -> None:
    s3.words = words
    buckets = [own_client() for _ in range(WRITERS)]
    for number in range(ROUNDS):
        barrier = Barrier(WRITERS)

        def write(writer: int, number: int = number, barrier: Barrier = barrier) -> bool:
            barrier.wait()
            return storage.create_if_absent(buckets[writer] / f"ledger/{number}", b"%d" % writer)

        with ThreadPoolExecutor(WRITERS) as pool:
            winners = [writer for writer, is_created in enumerate(pool.map(write, range(WRITERS))) if is_created]
        assert len(winners) == 1
        assert s3.buckets["evergreen"][f"ledger/{number}"] == b"%d" % winners[0]


def test_create_if_absent_accepts_repeated_put(s3: S3) -> None:
    file = own_client() / "one"
    assert storage.create_if_absent(file, b"mine")
    assert storage.create_if_absent(file, b"mine")
    assert not storage.create_if_absent(file, b"another's")


@pytest.mark.parametrize("fault", ["refuses", "full"])
def test_create_if_absent_raises_if_store_refuses(s3: S3, fault: str) -> None:
    s3.refuses, s3.full = ({"PUT"} if fault == "refuses" else set()), fault == "full"
    with pytest.raises(OSError, match="Access Denied|StorageFull"):
        storage.create_if_absent(own_client() / "one", b"mine")
    assert s3.buckets["evergreen"] == {}


def test_journal_in_bucket_detects_conflict(s3: S3) -> None:
    journal, stale_journal = (Journal("flight_delay", "s3://evergreen/ledger") for _ in range(2))
    stale_state = stale_journal.read()
    first = journal.append(journal.read(), "one", FROZEN)
    with pytest.raises(LedgerConflictError):
        stale_journal.append(stale_state, "other", FROZEN)
    assert stale_journal.read().entries == (first,)
    assert list(s3.buckets["evergreen"]) == ["ledger/flight_delay/0000/000001.json"]


def test_journal_needs_no_right_to_remove(s3: S3) -> None:
    s3.refuses = {"DELETE"}
    journal = Journal("flight_delay", "s3://evergreen/ledger")
    journal.append(journal.read(), "one", FROZEN)
    assert journal.read().head_number == 1
