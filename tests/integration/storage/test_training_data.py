"""An attempt that reads its data where it is published, through a connection that is cut again and again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from evergreen.storage import UPath, storage_path, upload
from evergreen.training import Job, runner
from evergreen.training.outcome import Outcome
from support.object_stores import STORES, open_store
from support.relay import Relay
from support.training_data import table, trees_job, write

pytestmark = pytest.mark.integration

CUTS = 4
INHERITED = ("PATH", "PYTHONPATH", "EVERGREEN_MODELS")


def start_attempt(job: Job, folder: UPath, home: Path, **variables: str) -> subprocess.Popen[str]:
    """Start an attempt as in a pod, which names no lake."""
    job.write(folder / "job.json")
    names = [name for name in os.environ if name in INHERITED or name.startswith("AWS_")]
    home.mkdir()
    environment: Mapping[str, str] = {
        **{name: os.environ[name] for name in names},
        **{"HOME": str(home), "TMPDIR": str(home), "EVERGREEN_PROJECT": "/nowhere", "EVERGREEN_HOME": "/nowhere"},
        **variables,
    }
    command = [sys.executable, "-m", "evergreen.training", str(folder / "job.json")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(attempt: subprocess.Popen[str]) -> None:
    output, _ = attempt.communicate(timeout=120)
    assert attempt.returncode == Outcome.SUCCEEDED.value, output


@pytest.mark.parametrize("kind", STORES)
def test_cuts_change_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(table(20_000), tmp_path / "train.parquet", group_rows=2_000)
    local = trees_job(file)
    with open_store(kind, monkeypatch) as (uri, _):
        upload(file, storage_path(f"{uri}/train.parquet"))
        remote = local.model_copy(update={"training_data": f"{uri}/train.parquet"})
        folder = storage_path(f"{uri}/jobs/flight_delay/{'f' * 64}")
        address = urlsplit(os.environ["AWS_ENDPOINT_URL"])
        assert address.hostname
        assert address.port
        target = address.hostname, address.port
        with Relay(lambda: target) as relay:
            attempt = start_attempt(remote, folder, tmp_path / "pod", AWS_ENDPOINT_URL=f"http://{relay.address}")
            for _ in range(CUTS):
                time.sleep(0.7)
                assert attempt.poll() is None
                relay.cut()
                time.sleep(0.2)
                relay.mend()
            finish(attempt)
        (tmp_path / "models").mkdir()
        stored = runner.fetch_model_files(remote.fingerprint, folder, tmp_path / "models")
    local_folder = UPath(tmp_path / "jobs" / "flight_delay" / ("f" * 64))
    local_folder.mkdir(parents=True)
    finish(start_attempt(local, local_folder, tmp_path / "machine"))
    (tmp_path / "local").mkdir()
    assert runner.fetch_model_files(local.fingerprint, local_folder, tmp_path / "local").files == stored.files
