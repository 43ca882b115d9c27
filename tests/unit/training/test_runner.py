"""What the runner stores, and what is accepted as a model."""

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


def run(job: Job, folder: UPath) -> None:
    runner.run_training(job, folder, Checkpoints(folder / "checkpoints", job.fingerprint, job.checkpoint_seconds))


def result_file(folder: UPath) -> UPath:
    return folder / "output" / "result.json"


def test_complete_model_is_accepted(make_job: Make, folder: UPath, tmp_path: Path) -> None:
    job = make_job()
    run(job, folder)
    assert runner.is_training_complete(job.fingerprint, folder)
    result = runner.fetch_model_files(job.fingerprint, folder, tmp_path)
    assert result.metrics == {"steps": 5.0}
    assert (tmp_path / "model.json").is_file()


def test_second_run_writes_the_same_result(make_job: Make, folder: UPath) -> None:
    run(make_job(), folder)
    before = result_file(folder).read_bytes()
    result_file(folder).unlink()
    run(make_job(), folder)
    assert result_file(folder).read_bytes() == before


def test_complete_job_is_not_trained_again(make_job: Make, folder: UPath) -> None:
    run(make_job(), folder)
    run(make_job(parameters={"steps": 5, "problem": "raise AssertionError('trained again')"}), folder)


def test_missing_result_is_no_model(folder: UPath, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no valid result.json, so no model"):
        runner.fetch_model_files("f" * 64, folder, tmp_path)


def test_truncated_result_is_no_model(make_job: Make, folder: UPath, tmp_path: Path) -> None:
    run(make_job(), folder)
    content = result_file(folder).read_bytes()
    storage.put(result_file(folder), content[: len(content) // 2])
    with pytest.raises(TrainingError, match=r"no valid result.json"):
        runner.fetch_model_files("f" * 64, folder, tmp_path)


def test_model_of_another_job_is_refused(make_job: Make, folder: UPath, tmp_path: Path) -> None:
    run(make_job(fingerprint="e" * 64), folder)
    with pytest.raises(TrainingError, match="holds the model of job eeee"):
        runner.fetch_model_files("f" * 64, folder, tmp_path)


@pytest.mark.parametrize("content", [b"other", None])
def test_changed_or_missing_file_is_refused(
    make_job: Make, folder: UPath, tmp_path: Path, content: bytes | None
) -> None:
    job = make_job()
    run(job, folder)
    [file] = (folder / "output").glob("*/model.json")
    file.unlink()
    if content is not None:
        storage.put(file, content)
    with pytest.raises(TrainingError, match=r"model.json (cannot be read|was changed)"):
        runner.fetch_model_files(job.fingerprint, folder, tmp_path)
    assert not runner.is_training_complete(job.fingerprint, folder)


def test_different_code_is_refused(make_job: Make, folder: UPath) -> None:
    with pytest.raises(CodeMismatchError, match=r"evergreen_models.hashing.train"):
        run(make_job(modules={"evergreen_models.hashing.train": "0" * 64}), folder)


def test_different_libraries_are_refused(make_job: Make, folder: UPath) -> None:
    libraries = {"numpy": "0.1", "nothing-of-that-name": "1.0"}
    with pytest.raises(
        CodeMismatchError, match=r"numpy \(.* here, 0.1 wanted\), nothing.* \(missing here, 1.0 wanted\)"
    ):
        run(make_job(libraries=libraries), folder)


def test_job_round_trips_and_refuses_unknown_fields(make_job: Make, folder: UPath) -> None:
    job = make_job()
    job.write(folder / "job.json")
    assert Job.read(folder / "job.json", folder) == job
    with pytest.raises(ValidationError, match="password"):
        Job.model_validate({**job.model_dump(), "password": "secret"})
