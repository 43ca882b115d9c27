"""What is believed of a training process's output."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from evergreen import lake
from evergreen.errors import TrainingError
from evergreen.training import Job, Result
from evergreen.training.local import believe

pytestmark = pytest.mark.unit

MARK = "f" * 64


def leave(folder: Path, fingerprint: str = MARK) -> Path:
    (folder / "model.ubj").write_bytes(b"trees")
    Result(
        fingerprint=fingerprint,
        files={"model.ubj": lake.sha256(folder / "model.ubj")},
        metrics={"loss": 0.3},
        environment={"python": "3.11"},
    ).write(folder / "result.json")
    return folder


def test_a_whole_result_is_believed(tmp_path: Path) -> None:
    assert believe(leave(tmp_path), MARK).metrics == {"loss": 0.3}


def test_no_result_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.ubj").write_bytes(b"trees")
    with pytest.raises(TrainingError, match="no valid result.json"):
        believe(tmp_path, MARK)


def test_half_a_result_is_no_model(tmp_path: Path) -> None:
    leave(tmp_path)
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(text[: len(text) // 2])
    with pytest.raises(TrainingError, match="no valid result.json"):
        believe(tmp_path, MARK)


def test_the_model_of_another_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds the model of job eeee"):
        believe(leave(tmp_path, "e" * 64), MARK)


@pytest.mark.parametrize("change", [Path.unlink, lambda file: file.write_bytes(b"other")])
def test_a_file_that_is_not_the_one_that_was_written_is_refused(tmp_path: Path, change) -> None:
    leave(tmp_path)
    change(tmp_path / "model.ubj")
    with pytest.raises(TrainingError, match=r"model.ubj is missing or was changed"):
        believe(tmp_path, MARK)


def test_a_job_is_read_as_it_was_written_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    job = Job(
        model="flight_delay",
        fingerprint=MARK,
        train="train.parquet",
        features=("a", "b"),
        label="label",
        parameters={"rounds": 3},
        seed=1,
        threads=2,
        gpu=0,
    )
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    with pytest.raises(ValidationError, match="password"):
        Job.model_validate({**job.model_dump(), "password": "secret"})
