"""Training data in an object store is read where it is: what was published or nothing, whatever happens meanwhile."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import TrainingDataError
from evergreen.storage import object_status, storage_path
from evergreen.training import Job, TrainingRows, open_training_rows, rows
from evergreen.training.outcome import AttemptResult, Outcome
from evergreen.training.rows import verify_training_data
from support import s3_server
from support.relay import Relay
from support.s3_server import S3
from support.training_data import table, trees_job, write

pytestmark = pytest.mark.unit

ROWS = table(250)
KEY = "training_sets/late/train/as_of=2013-01-01/3f9a-7c1e.parquet"
COLUMNS = ["rain", "row"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server.running("lake") as s3:
        s3.use(monkeypatch)
        yield s3


@pytest.fixture
def job(server: S3, tmp_path: Path) -> Job:
    file = write(ROWS, tmp_path / "train.parquet", group_rows=100)
    server.buckets["lake"][KEY] = file.read_bytes()
    server.requests.clear()
    job = trees_job(file).model_copy(update={"training_data": f"s3://lake/{KEY}"})
    file.unlink()
    return job


def read_all(job: Job) -> pa.Table:
    with open_training_rows(job) as training_rows:
        return pa.concat_tables(training_rows.read(COLUMNS))


def read_around(job: Job, event: Callable[[], None]) -> pa.Table:
    """Return all rows, of which the first group is read before `event`, and the others after it."""
    with open_training_rows(job) as training_rows:
        groups = training_rows.read(COLUMNS)
        first = next(groups)
        event()
        return pa.concat_tables([first, *groups])


def replace(server: S3, content: bytes) -> None:
    server.buckets["lake"][KEY] = content
    server.times[f"lake/{KEY}"] = time.time()


def test_nothing_is_written_to_a_disk(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))  # where no file could be made
    assert read_all(job).equals(ROWS.select(COLUMNS))
    assert not list(tmp_path.iterdir())


def test_a_pass_reads_each_row_group_once_and_only_its_columns(job: Job, server: S3) -> None:
    with open_training_rows(job) as training_rows:
        server.requests.clear()
        assert sum(map(len, training_rows.read(["row"]))) == 250
        assert len(server.requests) == 2 * 3  # the bytes, and whether they are still those that were compared


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1] + b"x", id="same size"),
        pytest.param(lambda content: content + b"x", id="longer"),
        pytest.param(lambda _: b"", id="empty"),
    ],
)
def test_other_content_is_never_read(job: Job, server: S3, damage: Callable[[bytes], bytes]) -> None:
    server.buckets["lake"][KEY] = damage(server.buckets["lake"][KEY])
    with pytest.raises(TrainingDataError, match="is not what was published") as caught:
        read_all(job)
    assert AttemptResult.from_error(caught.value).outcome is Outcome.BAD_DATA


def test_an_object_that_is_replaced_while_it_is_read_ends_the_attempt(job: Job, server: S3, tmp_path: Path) -> None:
    other = write(table(250, seed=8), tmp_path / "other.parquet", group_rows=100).read_bytes()
    with pytest.raises(TrainingDataError, match=rf"{KEY} is not what was published.*training_set task") as caught:
        read_around(job, lambda: replace(server, other))
    assert AttemptResult.from_error(caught.value).outcome is Outcome.BAD_DATA


def test_an_object_that_has_expired_ends_the_attempt(job: Job, server: S3) -> None:
    with pytest.raises(TrainingDataError, match=rf"{KEY} is gone: it has expired.*training_set task") as caught:
        read_around(job, server.buckets["lake"].clear)
    assert AttemptResult.from_error(caught.value).outcome is Outcome.BAD_DATA


def test_the_same_content_in_another_version_is_compared_again(job: Job, server: S3) -> None:
    """Maintenance moves an object to another storage class by copying it to its own place."""
    before = object_status(storage_path(job.training_data)).version

    def move() -> None:
        replace(server, server.buckets["lake"][KEY])
        assert object_status(storage_path(job.training_data)).version != before

    assert read_around(job, move).equals(ROWS.select(COLUMNS))


def test_a_version_that_changes_meanwhile_is_compared_again(
    job: Job, server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other content is there only while nobody compares."""
    content, status = server.buckets["lake"][KEY], rows.storage.object_status
    statuses = 0

    def change_after_first(file: object) -> object:
        nonlocal statuses
        statuses += 1
        result = status(file)  # type: ignore[arg-type]
        if statuses == 1:
            replace(server, content)
        return result

    monkeypatch.setattr(rows.storage, "object_status", change_after_first)
    known = verify_training_data(job)
    assert statuses == 3
    assert list(known.values()) == [status(storage_path(job.training_data)).version]


def test_a_refusal_names_the_right(job: Job, server: S3) -> None:
    """It is no fault of the data: the next attempt may have other credentials."""
    server.refuses = {"GET"}
    with pytest.raises(PermissionError, match=r"the right to read training sets; S3 also says so.* gone") as caught:
        read_all(job)
    assert AttemptResult.from_error(caught.value).outcome is Outcome.UNKNOWN


def test_a_connection_that_is_cut_is_made_anew(job: Job, server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with Relay(lambda: (host, int(port))) as relay:
        monkeypatch.setattr(server, "url", f"http://{relay.address}")
        server.use(monkeypatch)

        def cut() -> None:
            relay.cut()
            threading.Timer(2, relay.mend).start()

        assert read_around(job, cut).equals(ROWS.select(COLUMNS))


def test_a_store_that_stays_away_is_no_fault_of_the_data(job: Job, server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_RETRY_S", 0.0)

    def fail(*_: object) -> bytes:
        raise OSError("the store is away")

    with pytest.raises(OSError, match="the store is away") as caught:
        read_around(job, lambda: monkeypatch.setattr(rows.storage, "read_range", fail))
    assert AttemptResult.from_error(caught.value).outcome is Outcome.UNKNOWN


def test_short_answers_are_asked_for_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    read_range, cuts = rows.storage.read_range, [1, 0, 7]
    monkeypatch.setattr(rows, "_FIRST_PAUSE_S", 0.0)

    def cut_short(*range_of_file: object) -> bytes:
        data = read_range(*range_of_file)  # type: ignore[arg-type]
        return data[: cuts.pop()] if cuts else data

    monkeypatch.setattr(rows.storage, "read_range", cut_short)
    assert read_all(job).equals(ROWS.select(COLUMNS))
    assert not cuts


def test_processes_of_an_attempt_compare_once(job: Job, server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    def requests_to_open() -> int:
        server.requests.clear()
        with open_training_rows(job):
            return len(server.requests)

    alone = requests_to_open()
    for name, value in verify_training_data(job).items():
        monkeypatch.setenv(name, value)
    assert requests_to_open() == alone - 2  # of the file that fits into one request: its bytes, and its version again
    replace(server, server.buckets["lake"][KEY])
    assert requests_to_open() == alone


def test_data_in_a_folder_is_not_compared(tmp_path: Path) -> None:
    assert verify_training_data(trees_job(write(ROWS, tmp_path / "train.parquet", group_rows=100))) == {}


def test_each_open_file_has_a_position_of_its_own(job: Job) -> None:
    with open_training_rows(job) as training_rows, training_rows.open_file() as one, training_rows.open_file() as two:
        for group in (2, 0, 1):
            expected = ROWS.slice(100 * group, 100)
            assert one.read_row_group(group).equals(expected)
            assert two.read_row_group(2 - group).equals(ROWS.slice(100 * (2 - group), 100))


def test_a_file_without_rows(server: S3, tmp_path: Path) -> None:
    file = write(ROWS.slice(0, 0), tmp_path / "train.parquet", group_rows=100)
    server.buckets["lake"][KEY] = file.read_bytes()
    job = trees_job(file).model_copy(update={"training_data": f"s3://lake/{KEY}"})
    with open_training_rows(job) as training_rows:
        assert isinstance(training_rows, TrainingRows)
        assert training_rows.count == 0
        assert sum(map(len, training_rows.read(COLUMNS))) == 0
    assert pq.read_metadata(file).num_rows == 0
