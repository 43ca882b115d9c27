"""What an attempt leaves, and what is believed of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.unit.training.conftest import Make
from upath import UPath

from evergreen import storage
from evergreen.errors import TrainingError
from evergreen.training import Checkpoints, Job, runner
from evergreen.training.outcome import CodeMismatchError

pytestmark = pytest.mark.unit


@pytest.fixture(params=["folder", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    return storage.storage_path(str(tmp_path / "job") if request.param == "folder" else f"memory://{tmp_path.name}/job")


def fit(job: Job, folder: UPath) -> None:
    runner.run_training(job, folder, Checkpoints(folder / "checkpoints", job.fingerprint, job.checkpoint_seconds))


def result_file(folder: UPath) -> UPath:
    return folder / "output" / "result.json"


def test_a_whole_model_is_believed(make_job: Make, folder: UPath, tmp_path: Path) -> None:
    job = make_job()
    fit(job, folder)
    assert runner.is_training_complete(job.fingerprint, folder)
    result = runner.fetch_model_files(job.fingerprint, folder, tmp_path)
    assert result.metrics == {"steps": 5.0}
    assert (tmp_path / "model.json").is_file()


def test_two_attempts_at_once_leave_one_model(make_job: Make, folder: UPath) -> None:
    fit(make_job(), folder)
    before = result_file(folder).read_bytes()
    result_file(folder).unlink()
    fit(make_job(), folder)
    assert result_file(folder).read_bytes() == before


def test_a_job_that_is_done_is_not_done_again(make_job: Make, folder: UPath) -> None:
    fit(make_job(), folder)
    fit(make_job(parameters={"steps": 5, "problem": "raise AssertionError('trained again')"}), folder)


def test_no_result_is_no_model(folder: UPath, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no valid result.json, so no model"):
        runner.fetch_model_files("f" * 64, folder, tmp_path)


def test_half_a_result_is_no_model(make_job: Make, folder: UPath, tmp_path: Path) -> None:
    fit(make_job(), folder)
    whole = result_file(folder).read_bytes()
    storage.put(result_file(folder), whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"no valid result.json"):
        runner.fetch_model_files("f" * 64, folder, tmp_path)


def test_the_model_of_another_job_is_refused(make_job: Make, folder: UPath, tmp_path: Path) -> None:
    fit(make_job(fingerprint="e" * 64), folder)
    with pytest.raises(TrainingError, match="holds the model of job eeee"):
        runner.fetch_model_files("f" * 64, folder, tmp_path)


@pytest.mark.parametrize("content", [b"other", None])
def test_a_file_that_is_not_the_one_that_was_written_is_refused(
    make_job: Make, folder: UPath, tmp_path: Path, content: bytes | None
) -> None:
    job = make_job()
    fit(job, folder)
    [file] = (folder / "output").glob("*/model.json")
    file.unlink()
    if content is not None:
        storage.put(file, content)
    with pytest.raises(TrainingError, match=r"model.json (cannot be read|was changed)"):
        runner.fetch_model_files(job.fingerprint, folder, tmp_path)
    assert not runner.is_training_complete(job.fingerprint, folder)


def test_other_code_than_the_job_was_planned_with_is_refused(make_job: Make, folder: UPath) -> None:
    with pytest.raises(CodeMismatchError, match=r"evergreen_models.hashing.train"):
        fit(make_job(modules={"evergreen_models.hashing.train": "0" * 64}), folder)


def test_other_libraries_than_the_job_was_planned_with_are_refused(make_job: Make, folder: UPath) -> None:
    wanted = {"numpy": "0.1", "nothing-of-that-name": "1.0"}
    with pytest.raises(
        CodeMismatchError, match=r"numpy \(.* here, 0.1 wanted\), nothing.* \(missing here, 1.0 wanted\)"
    ):
        fit(make_job(libraries=wanted), folder)


def test_a_job_is_read_as_it_was_written_and_refuses_what_it_does_not_know(make_job: Make, folder: UPath) -> None:
    job = make_job()
    job.write(folder / "job.json")
    assert Job.read(folder / "job.json") == job
    with pytest.raises(ValidationError, match="password"):
        Job.model_validate({**job.model_dump(), "password": "secret"})
