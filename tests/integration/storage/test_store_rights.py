"""What each part asks of an object store: the rights that docs/trust.md lists, by the requests that were sent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evergreen import ledger
from evergreen.feature_store import training_sets
from evergreen.ledger import PromotionsFrozen
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.storage import UPath
from evergreen.training import candidates
from evergreen.training.outcome import Outcome
from support import s3_server
from support.s3_server import S3
from support.training_tasks import training_set

pytestmark = pytest.mark.integration

SPEC = loader.load_spec("slow")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, use_home: Callable[[Path], Path], tmp_path: Path) -> Iterator[S3]:
    with s3_server.running("ml", "ledger") as server:
        server.use(monkeypatch)
        monkeypatch.setenv("EVERGREEN_JOBS", "s3://ml/jobs")
        monkeypatch.setenv("EVERGREEN_LEDGER", "s3://ledger/ledger")
        use_home(tmp_path)
        yield server


@pytest.mark.parametrize("lake", ["", "s3://ml/lake"])
def test_a_training_pod_reads_its_data_and_writes_to_its_job(
    s3: S3, tmp_path: Path, lake: str, monkeypatch: pytest.MonkeyPatch, use_home: Callable[[Path], Path]
) -> None:
    """In an environment that names no lake, no ledger and no MLflow server."""
    if lake:
        monkeypatch.setenv("EVERGREEN_LAKE", lake)
        use_home(tmp_path)
    names = ("PATH", "PYTHONPATH", "EVERGREEN_MODELS", *(name for name in os.environ if name.startswith("AWS_")))
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"HOME": str(tmp_path), "EVERGREEN_PROJECT": "/nowhere", "EVERGREEN_HOME": "/nowhere"}
    of_the_pod: list[tuple[str, str]] = []
    folders = []

    def run_pod(job_file: UPath) -> None:
        s3.requests.clear()
        command = [sys.executable, "-m", "evergreen.training", str(job_file)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == Outcome.SUCCEEDED.value, ended.stdout + ended.stderr
        of_the_pod.extend(s3.requests)
        folders.append(f"{job_file.parent}".removeprefix("s3://"))
        s3.requests.clear()

    spec = SPEC.model_copy(update={"resources": SPEC.resources.model_copy(update={"checkpoint_seconds": 0.01})})
    source = training_sets.training_set_dataset(spec)
    examples = source.resolve(training_set(spec, steps=40, step_seconds=0.05))
    features = training_sets.model_input_columns(spec)
    candidates.train_candidate(spec, examples, source, features, run_pod)

    [folder] = folders
    data = f"ml/jobs/slow/data/{examples.files['train'].sha256}.parquet"
    if lake:
        data = f"ml/lake/training_sets/slow/{examples.files['train'].path}"
    assert {verb for verb, _ in of_the_pod} == {"GET", "LIST", "PUT", "DELETE"}
    for verb, key in of_the_pod:
        is_own = f"{key}/".startswith(f"{folder}/")
        assert is_own or (verb, key) in {("GET", data), ("LIST", data)}, (verb, key)
    # The task that made the job and publishes its model.
    assert {key.split("/")[0] for _, key in s3.requests} == {"ml"}
    assert all(key.startswith(("ml/jobs/slow/", *(["ml/lake/"] if lake else []))) for _, key in s3.requests)
    assert not any(key.startswith("ml/jobs/slow/data/") for _, key in s3.requests if lake)


def test_the_ledger_is_listed_read_and_added_to(s3: S3) -> None:
    s3.refuses = {"DELETE"}
    ledger.append_decision("slow", "ada", lambda _: PromotionsFrozen(reason="stocktaking"))
    assert ledger.read_state("slow").is_frozen
    assert settings().ledger == "s3://ledger/ledger"
    assert {verb for verb, _ in s3.requests} <= {"GET", "LIST", "PUT"}
    assert all(f"{key}/".startswith("ledger/ledger/slow/") for _, key in s3.requests)
