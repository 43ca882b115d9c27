"""What a checkpoint promises: whole or not there, of this job only, and held up by no store."""

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

MARK = "f" * 64


@pytest.fixture(params=["folder", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    if request.param == "folder":
        return storage.storage_path(str(tmp_path / "checkpoints"))
    return storage.storage_path(f"memory://{tmp_path.name}/checkpoints")


def always(folder: UPath, mark: str = MARK) -> Checkpoints:
    """Those of a job that writes after every step."""
    return Checkpoints(folder, mark, 0)


def write(folder: UPath, *steps: int, mark: str = MARK) -> None:
    checkpoints = always(folder, mark)
    for step in steps:
        checkpoints.record_step(step, lambda step=step: {"value": b"%d" % step, "later": lambda step=step: b"x" * step})
        checkpoints.flush()


def test_without_one_training_begins_at_the_start(folder: UPath) -> None:
    checkpoints = always(folder)
    assert checkpoints.load_latest() is None
    assert checkpoints.resumed_step == 0


def test_the_newest_is_found_by_the_next_attempt(folder: UPath) -> None:
    write(folder, 1, 2, 12)
    checkpoints = always(folder)
    assert checkpoints.load_latest() == Checkpoint(12, {"value": b"12", "later": b"x" * 12})
    assert (checkpoints.resumed_step, checkpoints.last_step) == (12, 12)


def test_the_last_few_are_kept(folder: UPath) -> None:
    write(folder, *range(1, 8))
    assert len([name for name in storage.list_names(folder) if name.endswith(".json")]) == MAX_CHECKPOINTS
    assert len(storage.list_names(folder)) == 2 * MAX_CHECKPOINTS


def test_none_is_written_before_its_interval_has_passed(folder: UPath) -> None:
    checkpoints = Checkpoints(folder, MARK, 0.2)
    checkpoints.record_step(1, lambda: {"value": b"1"})
    assert always(folder).load_latest() is None
    time.sleep(0.25)
    checkpoints.record_step(2, lambda: {"value": b"2"})
    checkpoints.record_step(3, lambda: {"value": b"3"})
    checkpoints.flush()
    found = always(folder).load_latest()
    assert found
    assert found.step == 2


def test_a_slow_store_holds_up_no_step(folder: UPath) -> None:
    checkpoints, go_on = always(folder), Event()

    def slowly() -> bytes:
        assert go_on.wait(10)
        return b"1"

    checkpoints.record_step(1, lambda: {"value": slowly})
    checkpoints.record_step(2, lambda: pytest.fail("the write before is still going on"))
    go_on.set()
    checkpoints.flush()
    assert always(folder).load_latest() == Checkpoint(1, {"value": b"1"})


def test_who_is_asked_to_leave_leaves_a_checkpoint_of_the_step_that_it_is_at(folder: UPath) -> None:
    checkpoints = Checkpoints(folder, MARK, 1000)
    checkpoints.record_step(1, lambda: {"value": b"1"})
    checkpoints.request_stop()
    with pytest.raises(TrainingPreempted, match="after step 2"):
        checkpoints.record_step(2, lambda: {"value": lambda: b"2"})
    assert always(folder).load_latest() == Checkpoint(2, {"value": b"2"})


def test_of_several_that_train_together_one_writes(folder: UPath) -> None:
    other = Checkpoints(folder, MARK, 0, is_writer=False)
    other.record_step(1, lambda: {"value": b"1"})
    other.request_stop()
    with pytest.raises(TrainingPreempted):
        other.record_step(2, lambda: {"value": b"2"})
    assert always(folder).load_latest() is None


def test_half_a_checkpoint_is_none(folder: UPath) -> None:
    write(folder, 1, 2)
    (folder / "step-000000002.json").unlink()
    assert always(folder).load_latest() == Checkpoint(1, {"value": b"1", "later": b"x"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("step-000000002/value", b"other"),
        ("step-000000002/value", None),
        ("step-000000002.json", b'{"finger'),
        ("step-000000002.json", b""),
    ],
)
def test_a_damaged_one_is_told_about_and_the_one_before_is_taken(
    folder: UPath, name: str, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, 1, 2)
    (folder / name).unlink()
    if content is not None:
        storage.put(folder / name, content)
    found = always(folder).load_latest()
    assert found
    assert found.step == 1
    assert "checkpoint of step 2 is passed over" in capsys.readouterr().out


def test_one_of_another_job_is_refused(folder: UPath) -> None:
    write(folder, 1, mark="e" * 64)
    with pytest.raises(TrainingDataError, match="is a checkpoint of step 1 of job eeeeeeeeeeee, and this is ffff"):
        always(folder).load_latest()


def test_one_under_another_number_is_refused(folder: UPath) -> None:
    write(folder, 1)
    storage.put(folder / "step-000000009.json", (folder / "step-000000001.json").read_bytes())
    with pytest.raises(TrainingDataError, match="of step 1 of job"):
        always(folder).load_latest()


def test_a_full_volume_does_not_end_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    checkpoints = always(storage.storage_path(str(tmp_path / "checkpoints")))
    checkpoints.record_step(1, lambda: {"value": b"1"})
    checkpoints.flush()
    checkpoints.record_step(2, lambda: {"value": b"2"})
    checkpoints.flush()
    assert capsys.readouterr().out.count("training goes on") == 2


def test_a_state_that_cannot_be_told_ends_training(folder: UPath) -> None:
    def broken() -> bytes:
        raise TypeError("no such tensor")

    checkpoints = always(folder)
    checkpoints.record_step(1, lambda: {"value": broken})
    with pytest.raises(TypeError, match="no such tensor"):
        checkpoints.flush()


def test_a_manifest_tells_what_it_is_about(folder: UPath) -> None:
    write(folder, 3)
    manifest = json.loads((folder / "step-000000003.json").read_text())
    assert manifest["fingerprint"] == MARK
    assert manifest["step"] == 3
    assert sorted(manifest["files"]) == ["later", "value"]
