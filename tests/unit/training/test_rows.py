"""Rows of a job come in row groups, in order, as often as a trainer asks, from a folder and from an object store."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from evergreen.storage import storage_path
from evergreen.training import Job, open_training_rows
from support.training_data import table, trees_job, write

pytestmark = pytest.mark.unit

ROWS = table(250)


@pytest.fixture(params=["folder", "object store"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    job = trees_job(write(ROWS, tmp_path / "train.parquet", group_rows=100))
    if request.param == "folder":
        return job
    uri = f"memory://jobs/{tmp_path.name}.parquet"
    storage_path(uri).write_bytes((tmp_path / "train.parquet").read_bytes())
    (tmp_path / "train.parquet").unlink()
    return job.model_copy(update={"training_data": uri})


def test_rows_come_in_row_groups_each_time(job: Job) -> None:
    columns = ["rain", "row"]
    with open_training_rows(job) as rows:
        assert rows.count == 250
        assert rows.source == job.training_data
        for _ in range(2):
            parts = list(rows.read(columns))
            assert [len(part) for part in parts] == [100, 100, 50]
            assert pa.concat_tables(parts).equals(ROWS.select(columns))


def test_file_without_rows_has_no_part_with_rows(tmp_path: Path) -> None:
    job = trees_job(write(ROWS.slice(0, 0), tmp_path / "train.parquet", group_rows=100))
    with open_training_rows(job) as rows:
        assert rows.count == 0
        assert sum(len(part) for part in rows.read(["row"])) == 0
