"""Checkpoints are complete or absent, belong to one job, and are written without delaying a step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Event

import pytest
from upath import UPath

from evergreen import storage
from evergreen.errors import TrainingDataError
from evergreen.training import Checkpoint, Checkpoints
from evergreen.training.checkpoints import MAX_CHECKPOINTS
from evergreen.training.outcome import TrainingPreempted

pytestmark = pytest.mark.unit

FINGERPRINT = "f" * 64


@pytest.fixture(params=["folder", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    if request.param == "folder":
        return storage.storage_path(str(tmp_path / "checkpoints"))
    return storage.storage_path(f"memory://{tmp_path.name}/checkpoints")


def every_step(folder: UPath, fingerprint: str = FINGERPRINT) -> Checkpoints:
    """Checkpoints of a job that writes after every step."""
    return Checkpoints(folder, fingerprint, 0)


def write(folder: UPath, *steps: int, fingerprint: str = FINGERPRINT) -> None:
    checkpoints = every_step(folder, fingerprint)
    for step in steps:
        checkpoints.record_step(step, lambda step=step: {"value": b"%d" % step, "later": lambda step=step: b"x" * step})
        checkpoints.flush()


def test_load_latest_without_checkpoints_is_none(folder: UPath) -> None:
    checkpoints = every_step(folder)
    assert checkpoints.load_latest() is None
    assert checkpoints.resumed_step == 0


def test_load_latest_returns_the_newest(folder: UPath) -> None:
    write(folder, 1, 2, 12)
    checkpoints = every_step(folder)
    assert checkpoints.load_latest() == Checkpoint(12, {"value": b"12", "later": b"x" * 12})
    assert (checkpoints.resumed_step, checkpoints.last_step) == (12, 12)


def test_old_checkpoints_are_removed(folder: UPath) -> None:
    write(folder, *range(1, 8))
    assert len([name for name in storage.list_names(folder) if name.endswith(".json")]) == MAX_CHECKPOINTS
    assert len(storage.list_names(folder)) == 2 * MAX_CHECKPOINTS


def test_record_step_waits_for_the_interval(folder: UPath) -> None:
    checkpoints = Checkpoints(folder, FINGERPRINT, 0.2)
    checkpoints.record_step(1, lambda: {"value": b"1"})
    assert every_step(folder).load_latest() is None
    time.sleep(0.25)
    checkpoints.record_step(2, lambda: {"value": b"2"})
    checkpoints.record_step(3, lambda: {"value": b"3"})
    checkpoints.flush()
    latest = every_step(folder).load_latest()
    assert latest
    assert latest.step == 2


def test_slow_write_delays_no_step(folder: UPath) -> None:
    checkpoints, released = every_step(folder), Event()

    def wait() -> bytes:
        assert released.wait(10)
        return b"1"

    checkpoints.record_step(1, lambda: {"value": wait})
    checkpoints.record_step(2, lambda: pytest.fail("the write before is still going on"))
    released.set()
    checkpoints.flush()
    assert every_step(folder).load_latest() == Checkpoint(1, {"value": b"1"})


def test_stop_request_writes_a_checkpoint_and_raises(folder: UPath) -> None:
    checkpoints = Checkpoints(folder, FINGERPRINT, 1000)
    checkpoints.record_step(1, lambda: {"value": b"1"})
    checkpoints.request_stop()
    with pytest.raises(TrainingPreempted, match="after step 2"):
        checkpoints.record_step(2, lambda: {"value": lambda: b"2"})
    assert every_step(folder).load_latest() == Checkpoint(2, {"value": b"2"})


def test_only_the_writer_writes(folder: UPath) -> None:
    other = Checkpoints(folder, FINGERPRINT, 0, is_writer=False)
    other.record_step(1, lambda: {"value": b"1"})
    other.request_stop()
    with pytest.raises(TrainingPreempted):
        other.record_step(2, lambda: {"value": b"2"})
    assert every_step(folder).load_latest() is None


def test_checkpoint_without_manifest_is_ignored(folder: UPath) -> None:
    write(folder, 1, 2)
    (folder / "step-000000002.json").unlink()
    assert every_step(folder).load_latest() == Checkpoint(1, {"value": b"1", "later": b"x"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("step-000000002/value", b"other"),
        ("step-000000002/value", None),
        ("step-000000002.json", b'{"finger'),
        ("step-000000002.json", b""),
    ],
)
def test_damaged_checkpoint_is_logged_and_skipped(
    folder: UPath, name: str, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, 1, 2)
    (folder / name).unlink()
    if content is not None:
        storage.put(folder / name, content)
    latest = every_step(folder).load_latest()
    assert latest
    assert latest.step == 1
    assert "checkpoint of step 2 is skipped" in caplog.text


def test_checkpoint_of_another_job_is_refused(folder: UPath) -> None:
    write(folder, 1, fingerprint="e" * 64)
    with pytest.raises(TrainingDataError, match="is a checkpoint of step 1 of job eeeeeeeeeeee, not of ffff"):
        every_step(folder).load_latest()


def test_checkpoint_with_another_step_number_is_refused(folder: UPath) -> None:
    write(folder, 1)
    storage.put(folder / "step-000000009.json", (folder / "step-000000001.json").read_bytes())
    with pytest.raises(TrainingDataError, match="of step 1 of job"):
        every_step(folder).load_latest()


def test_failed_write_does_not_end_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    checkpoints = every_step(storage.storage_path(str(tmp_path / "checkpoints")))
    checkpoints.record_step(1, lambda: {"value": b"1"})
    checkpoints.flush()
    checkpoints.record_step(2, lambda: {"value": b"2"})
    checkpoints.flush()
    assert caplog.text.count("training continues") == 2


def test_failing_state_provider_ends_training(folder: UPath) -> None:
    def broken() -> bytes:
        raise TypeError("no such tensor")

    checkpoints = every_step(folder)
    checkpoints.record_step(1, lambda: {"value": broken})
    with pytest.raises(TypeError, match="no such tensor"):
        checkpoints.flush()


def test_manifest_names_job_step_and_files(folder: UPath) -> None:
    write(folder, 3)
    manifest = json.loads((folder / "step-000000003.json").read_text())
    assert manifest["fingerprint"] == FINGERPRINT
    assert manifest["step"] == 3
    assert sorted(manifest["files"]) == ["later", "value"]
