"""What a trial of one period is given: settings that name scratch places, whatever those of a deployment are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evergreen.cli.check.period import resolve_period, trial_environment
from evergreen.errors import WindowError
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


def test_a_period_is_one_of_the_model(home: Path) -> None:
    assert resolve_period("flight_delay", None) == "2013-01-01"
    assert resolve_period("flight_delay", "2013-03-01") == "2013-03-01"
    for period in ("2012-12-31", "2014-01-01"):
        with pytest.raises(WindowError, match="has data from 2013-01-01 on, before 2014-01-01"):
            resolve_period("flight_delay", period)
    with pytest.raises(WindowError):
        resolve_period("departure_counts", "2013-03-01T05:30Z")
