"""Airflow's side of a hostile attempt: a candidate is published whole, or nothing outside of the job is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from evergreen.errors import TrainingError
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.storage import UPath, storage_path
from evergreen.training import candidates
from evergreen.training.attempt import Attempt, ResourceAllocation
from evergreen.training.recent_attempts import read_recent_attempts

pytestmark = pytest.mark.unit

CONTENT = b"model"
DIGEST = sha256(CONTENT).hexdigest()


@pytest.fixture
def train(home: Path, tmp_path: Path) -> Callable[[Callable[[Path], None]], datasets.Manifest]:
    """Return a function that trains a candidate by an attempt which does what it is given in the job's folder."""
    dataset = datasets.open_dataset("training_sets/flight_delay")
    staged = dataset.stage("as_of=2013-01-11", "a" * 64) / "train"
    staged.write_bytes(b"rows")
    training_set = dataset.publish("as_of=2013-01-11", "a" * 64, {"train": staged}, {})
    victim = tmp_path / "victim" / "checkpoints"
    victim.mkdir(parents=True)
    (victim / "precious").write_text("precious")

    def train(act: Callable[[Path], None]) -> datasets.Manifest:
        model = loader.load_spec("flight_delay")
        return candidates.train_candidate(
            model, training_set, dataset, ("dep_hour",), lambda job_file: act(Path(str(job_file)).parent)
        )

    return train


def answer(folder: Path, **changes: Any) -> None:
    """Leave a complete result, with `changes`."""
    (folder / "output" / DIGEST).mkdir(parents=True)
    (folder / "output" / DIGEST / "model.ubj").write_bytes(CONTENT)
    fields = {"fingerprint": folder.name, "files": {"model.ubj": DIGEST}, "metrics": {}, "environment": {}}
    (folder / "output" / "result.json").write_text(json.dumps({**fields, **changes}))


def contents(folder: Path) -> dict[str, bytes]:
    """Return everything outside of the folder of jobs and of what is being staged, under a lock."""
    own = (str(settings().jobs), "/_staging/", "/_lock/")
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part in f"{path}/" for part in own)
    }


def replace_by_link(path: Path, target: Path) -> None:
    if path.exists():
        path.rename(path.with_name(f"{path.name}-moved"))
    path.symlink_to(target)


def test_an_honest_candidate_is_published(train: Callable[..., datasets.Manifest]) -> None:
    manifest = train(answer)
    assert set(manifest.files) == {"model.ubj", "result.json"}
    assert manifest.files["model.ubj"].sha256 == DIGEST


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../../dags/x.py": DIGEST}},
        {"files": {"/tmp/x.py": DIGEST}},
        {"files": {"_manifests": DIGEST}},
        {"files": {"result.json": DIGEST}},
        {"files": {"model.ubj": f"../../{DIGEST}"}},
        {"fingerprint": "../../x"},
        {"metrics": {"loss": float("nan")}},
        {"metrics": {"../x": 1.0}},
    ],
)
def test_a_hostile_result_changes_nothing(
    train: Callable[..., datasets.Manifest], tmp_path: Path, changes: dict[str, Any]
) -> None:
    before = contents(tmp_path)
    with pytest.raises(TrainingError):
        train(lambda folder: answer(folder, **changes))
    assert contents(tmp_path) == before
    assert candidates.candidate_dataset(loader.load_spec("flight_delay")).partitions() == []


@pytest.mark.parametrize("part", ["checkpoints", "output", ".", ".."])
def test_a_link_changes_nothing(train: Callable[..., datasets.Manifest], tmp_path: Path, part: str) -> None:
    before = contents(tmp_path)

    def act(folder: Path) -> None:
        answer(folder)
        replace_by_link(Path(os.path.normpath(folder / part)), tmp_path / "victim")

    with pytest.raises(TrainingError, match="it is a link"):
        train(act)
    assert contents(tmp_path) == before


def test_a_job_is_not_written_through_a_link(train: Callable[..., datasets.Manifest], tmp_path: Path) -> None:
    before = contents(tmp_path)
    jobs = UPath(settings().jobs)
    jobs.mkdir(parents=True)
    (Path(str(jobs)) / "flight_delay").symlink_to(tmp_path / "victim")
    with pytest.raises(TrainingError, match="flight_delay is refused: it is a link"):
        train(answer)
    assert contents(tmp_path) == before


def test_attempts_are_found_by_their_month_while_they_run(
    train: Callable[[Callable[[Path], None]], datasets.Manifest],
) -> None:
    running = []

    def act(folder: Path) -> None:
        now = datetime.now(UTC)
        attempt = Attempt(
            id="one",
            dag_run="",
            model="flight_delay",
            team="",
            allocation=ResourceAllocation(),
            started_at=now,
            last_heartbeat=now,
        )
        attempt.write(folder / "attempts" / "one.json")
        running.extend(read_recent_attempts(storage_path(str(folder.parent)), now))
        answer(folder)

    train(act)
    assert [attempt.id for attempt in running] == ["one"]
