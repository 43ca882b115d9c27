"""Where a trainer reads a training set: in the lake's store if it can, and it stays there for as long as it trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from evergreen import object_store
from evergreen.errors import TrainingDataError
from evergreen.lake import datasets, retention
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.retention import RetentionRule
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath, file_sha256
from evergreen.training import Job, candidates, open_training_rows
from evergreen.training.job import jobs_root
from support import s3_server
from support.s3_server import S3
from support.training_data import table, write

pytestmark = pytest.mark.unit

ROWS = table(250)
PARTITION = "as_of=2013-01-08"
DAY_S = 24 * 3600.0


class PlannedError(Exception):
    """Ends a task when it has planned its job."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[S3]:
    with s3_server.running("lake", "jobs") as s3:
        s3.use(monkeypatch)
        object_store.open_bucket.cache_clear()
        yield s3
    object_store.open_bucket.cache_clear()


@pytest.fixture
def use_lake(
    server: S3, monkeypatch: pytest.MonkeyPatch, use_home: Callable[[Path], Path], home: Path
) -> Callable[[str, str], None]:
    def use(lake: str, jobs: str) -> None:
        monkeypatch.setenv("EVERGREEN_LAKE", lake)
        monkeypatch.setenv("EVERGREEN_JOBS", jobs)
        use_home(home)

    return use


def publish(model: ModelSpec, tmp_path: Path) -> tuple[Dataset, Manifest]:
    dataset = datasets.open_dataset(f"training_sets/{model.name}")
    file = write(ROWS, dataset.stage(PARTITION, "f" * 64) / "train.parquet", group_rows=100)
    return dataset, dataset.publish(PARTITION, "f" * 64, {"train": file}, {})


def plan(model: ModelSpec, dataset: Dataset, manifest: Manifest) -> Job:
    jobs: list[Job] = []

    def run_job(file: UPath) -> None:
        jobs.append(Job.read(file, jobs_root(file.parent)))
        raise PlannedError

    with pytest.raises(PlannedError):
        candidates.train_candidate(model, manifest, dataset, ("rain", "late_rate"), run_job)
    [job] = jobs
    return job


@pytest.fixture
def model() -> ModelSpec:
    return loader.load_spec("flight_delay")


@pytest.mark.parametrize(("lake", "jobs"), [("s3://lake/l", "s3://jobs/j"), ("s3://lake/l", "s3a://jobs/j")])
def test_a_trainer_reads_the_published_object(
    use_lake: Callable[[str, str], None], model: ModelSpec, tmp_path: Path, server: S3, lake: str, jobs: str
) -> None:
    use_lake(lake, jobs)
    dataset, manifest = publish(model, tmp_path)
    server.requests.clear()
    job = plan(model, dataset, manifest)
    entry = manifest.files["train"]
    assert job.training_data == f"{lake}/training_sets/flight_delay/{entry.path}"
    assert (job.training_data_sha256, job.training_data_size) == (entry.sha256, entry.size)
    # The task has neither copied nor read it.
    files = [key for key in server.buckets["jobs"] if "/months/" not in key]
    assert [key.rpartition("/")[2] for key in files] == ["job.json"]
    assert not any(entry.path in key for _, key in server.requests)
    with open_training_rows(job) as rows:
        assert pa.concat_tables(rows.read(ROWS.column_names)).equals(ROWS)


@pytest.mark.parametrize(
    ("lake", "jobs"), [("", "s3://jobs/j"), ("s3://lake/l", "memory://jobs"), ("memory://lake/l", "memory://jobs")]
)
def test_other_stores_get_a_copy(
    use_lake: Callable[[str, str], None],
    model: ModelSpec,
    tmp_path: Path,
    home: Path,
    lake: str,
    jobs: str,
) -> None:
    """Nobody shares a disk with a pod, and credentials are of one store."""
    jobs = f"{jobs}/{tmp_path.name}"
    use_lake(lake or str(home / "lake"), jobs)
    dataset, manifest = publish(model, tmp_path)
    for _ in range(2):
        job = plan(model, dataset, manifest)
        assert job.training_data == f"{jobs}/flight_delay/data/{manifest.files['train'].sha256}.parquet"
        with open_training_rows(job) as rows:
            assert pa.concat_tables(rows.read(ROWS.column_names)).equals(ROWS)


@pytest.mark.parametrize("in_store", [False, True])
def test_jobs_in_a_folder_read_a_local_file(
    use_lake: Callable[[str, str], None], model: ModelSpec, tmp_path: Path, home: Path, in_store: bool
) -> None:
    use_lake("s3://lake/l" if in_store else str(home / "lake"), str(home / "jobs"))
    dataset, manifest = publish(model, tmp_path)
    job = plan(model, dataset, manifest)
    assert job.training_data == str(dataset.file_path(manifest, "train"))
    assert file_sha256(Path(job.training_data)) == job.training_data_sha256


def test_fingerprints_do_not_depend_on_the_place(
    use_lake: Callable[[str, str], None], model: ModelSpec, tmp_path: Path, home: Path
) -> None:
    fingerprints = set()
    for lake, jobs in [(str(home / "lake"), str(home / "jobs")), ("s3://lake/l", "s3://jobs/j")]:
        use_lake(lake, jobs)
        fingerprints.add(plan(model, *publish(model, tmp_path)).fingerprint)
    assert len(fingerprints) == 1


def test_a_training_set_that_expires_stays_while_a_job_reads_it(
    use_lake: Callable[[str, str], None], model: ModelSpec, tmp_path: Path, server: S3
) -> None:
    """Its files stay for as long as leftovers, and `maintenance` refuses settings by which a training takes longer."""
    use_lake("s3://lake/l", "s3://jobs/j")
    dataset, manifest = publish(model, tmp_path)
    job = plan(model, dataset, manifest)
    rule = RetentionRule(leftovers_after=2 * DAY_S, expires_after=10 * DAY_S, is_needed=lambda _: False)

    def clean(now: float) -> list[str]:
        removals = retention.plan_removals(retention.take_inventory(dataset), rule, now)
        return [removal.kind for removal in retention.apply_removals(dataset, removals, rule, now)]

    with open_training_rows(job) as rows:
        groups = rows.read(["row"])
        parts = [next(groups)]
        now = time.time() + 11 * DAY_S
        server.clock = lambda: now
        assert clean(now) == ["expired"]
        assert dataset.find(PARTITION, manifest.fingerprint) is None
        parts.append(next(groups))
        now += DAY_S
        assert clean(now) == []
        parts.append(next(groups))
        assert pa.concat_tables(parts).equals(ROWS.select(["row"]))
        now += 2 * DAY_S
        assert "replaced" in clean(now)
        with pytest.raises(TrainingDataError, match="is gone: it has expired"):
            next(rows.read(["row"]))
