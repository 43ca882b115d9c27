"""What a trial of one period is given: settings that name scratch places, whatever those of a deployment are."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from evergreen.cli.check.period import TableSample, _sample_table, resolve_period, trial_environment
from evergreen.errors import WindowError
from evergreen.reports.table_profile import profile_table
from evergreen.settings import settings

pytestmark = pytest.mark.unit

PRINT = """
from evergreen.settings import settings
own = settings()
print(own.lake, own.ledger, own.jobs, own.online_store.get_secret_value(), own.spark.get_secret_value(), own.raw,
      own.spark_conf, own.training_backend, own.tables, sep="|")
"""


def test_nothing_that_a_trial_writes_goes_to_a_deployment(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = settings().raw
    for name, value in {
        "evergreen_lake": "/production/lake",  # settings are read whatever the case of their names
        "Evergreen_Ledger": "s3://production/ledger",
        "EVERGREEN_ONLINE_STORE": "redis://production",
        "EVERGREEN_SPARK": "sc://production",
        "EVERGREEN_SPARK_CONF": '{"spark.eventLog.dir": "s3a://production/logs"}',
        "EVERGREEN_TRAINING_BACKEND": "pod",
        "EVERGREEN_TABLES": "delta",
        "EVERGREEN_MLFLOW": "http://production",
    }.items():
        monkeypatch.setenv(name, value)
    scratch = tmp_path / "it's a trial"
    scratch.mkdir()
    variables = trial_environment(scratch)
    assert not [name for name in variables if "production" in variables[name]]
    done = subprocess.run(
        [sys.executable, "-c", PRINT],
        env={**variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    lake, ledger, jobs, online, spark, used_raw, *rest = done.stdout.strip().split("|")
    assert all(place.startswith(str(scratch)) for place in (lake, ledger, jobs, online)), done.stdout + done.stderr
    assert spark.startswith("local")
    assert used_raw == raw
    assert rest == ["{}", "process", "None"]


def shown(width: int, columns: int, tmp_path: Path, rows: int = 4) -> list[str]:
    """Return the lines that a preview prints on a terminal of this width."""
    table = pa.table({f"column_{number}": [number * 1.5, None, 3.0, 4.0][:rows] for number in range(columns)})
    pq.write_table(table, tmp_path / "habits.parquet")
    sample = TableSample(profile_table("habits", tmp_path / "habits.parquet"), table.to_pylist())
    output = io.StringIO()
    Console(file=output, width=width).print(_sample_table(sample, "2024-01-01", width))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_a_preview_of_few_columns_has_a_line_for_each_row(tmp_path: Path) -> None:
    lines = shown(80, 3, tmp_path)
    assert "habits of 2024-01-01: 4 rows, 3 columns" in " ".join(lines)
    rows = [line.split() for line in lines]
    assert ["column_0", "column_1", "column_2"] in rows
    assert ["0.0", "1.5", "3.0"] in rows


@pytest.mark.parametrize(("width", "fitting"), [(80, 4), (36, 1), (40, 2), (20, 1)])
def test_a_preview_of_many_columns_has_a_line_for_each_column(width: int, fitting: int, tmp_path: Path) -> None:
    lines = shown(width, 30, tmp_path)
    assert max(map(len, lines)) <= width
    if width == 80:
        assert lines[0] == "habits of 2024-01-01: 4 rows, 30 columns"
        assert lines[2].split() == ["column", "type", "row", "1", "row", "2", "row", "3", "row", "4"]
        assert "column_7" in lines[4 + 7]
        assert lines[4 + 7].split() == ["column_7", "double", "10.5", "–", "3.0", "4.0"]
    else:
        assert f"of which {fitting} fit here" in " ".join(" ".join(lines).split())


def test_a_preview_without_rows_shows_the_columns(tmp_path: Path) -> None:
    assert ["column_1", "null"] in [line.split() for line in shown(80, 30, tmp_path, rows=0)]


def test_a_period_is_one_of_the_model(home: Path) -> None:
    assert resolve_period("flight_delay", None) == "2013-01-01"
    assert resolve_period("flight_delay", "2013-03-01") == "2013-03-01"
    for period in ("2012-12-31", "2014-01-01"):
        with pytest.raises(WindowError, match="has data from 2013-01-01 on, before 2014-01-01"):
            resolve_period("flight_delay", period)
    with pytest.raises(WindowError):
        resolve_period("departure_counts", "2013-03-01T05:30Z")
