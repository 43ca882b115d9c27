"""What the candidate costs to serve, measured in a process that does nothing else.

Run as `python -m evergreen.evaluation.serving job.json`: loads the model that the job names, predicts, and
prints the figures as its last line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import ScoringError
from evergreen.gates.evidence import MissingEvidence
from evergreen.lake import datasets
from evergreen.scoring import predictions, predictors
from evergreen.spec.model import ModelSpec
from evergreen.training.backends import process
from evergreen.training.job import RESULT_FILE

SINGLE_REQUESTS, BATCH_REQUESTS, BATCH_ROWS = 1000, 50, 1000
DISTINCT_ROWS = 5 * BATCH_ROWS
WARM_UP_REQUESTS = 20
MEASUREMENT_TIMEOUT_S = 300

_MIB = 2**20


def measure_serving_costs(
    model: ModelSpec, candidate: datasets.Manifest, holdout: pa.Table
) -> dict[str, float] | MissingEvidence:
    """Each `evergreen.spec.gates.Quantity` of the candidate, predicting rows of `table`.

    Latencies, in ms, are of one prediction from a row (or batch of 1,000 rows) as the model's library takes it to
    a probability, on one thread, as a worker that serves requests has: the features are there already, nothing is
    sent. Percentiles are of 1,000 single rows and 50 batches, after a warm-up. `size_mib` is of the model's files.
    `memory_mib` is the growth of the process's resident memory by loading and predicting, its libraries loaded
    before.
    """
    if not holdout.num_rows:
        return MissingEvidence("serving cannot be measured: the holdout has no rows to predict")
    features = list(candidate.inputs["features"])
    if absent := sorted(set(features) - set(holdout.column_names)):
        return MissingEvidence(f"serving cannot be measured: the holdout lacks {', '.join(absent)}")
    size = sum(file.size for name, file in candidate.files.items() if name != RESULT_FILE)
    with tempfile.TemporaryDirectory() as scratch, predictions.candidate_folder(model, candidate) as folder:
        rows, job = Path(scratch) / "rows.parquet", Path(scratch) / "job.json"
        pq.write_table(holdout.select(features).slice(0, DISTINCT_ROWS), rows)
        job.write_text(json.dumps({"folder": str(folder), "rows": str(rows)}))
        found = _run_measurement(job)
    return found if isinstance(found, MissingEvidence) else {**found, "size_mib": size / _MIB}


def _run_measurement(job: Path) -> dict[str, float] | MissingEvidence:
    command = [sys.executable, "-m", "evergreen.evaluation.serving", str(job)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=process.trainer_environment(),
            timeout=MEASUREMENT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return MissingEvidence(
            f"serving could not be measured: the process was not done after {MEASUREMENT_TIMEOUT_S} s"
        )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return MissingEvidence(
            f"serving could not be measured: the process ended with exit code {done.returncode}: {''.join(last)}"
        )
    return {name: float(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def measure_loaded_model(folder: Path, rows: pa.Table) -> dict[str, float]:
    """Load the model in `folder` and predict `rows`, its inputs, in this process; all quantities but the size.

    Raises:
        ScoringError: it cannot be loaded, or cannot predict such rows.
    """
    import psutil

    file = predictions.model_file(folder)
    import_module(predictors.PREDICTORS[file.name].library)  # before memory is looked at
    memory = psutil.Process().memory_info
    before = memory().rss
    start = time.perf_counter()
    predictor = predictors.load_predictor(file, threads=1)
    loaded = time.perf_counter()
    by_loading = memory().rss - before
    predictor.check_columns(rows.column_names)
    single = [predictor.prepare_request(_repeat_rows(rows, n, 1)) for n in range(SINGLE_REQUESTS)]
    batches = [
        predictor.prepare_request(_repeat_rows(rows, n, BATCH_ROWS)) for n in range(0, DISTINCT_ROWS, BATCH_ROWS)
    ]
    before = memory().rss
    one = _measure_latencies_ms(single, SINGLE_REQUESTS)
    many = _measure_latencies_ms(batches, BATCH_REQUESTS)
    by_predicting = memory().rss - before
    return {
        "single_p50_ms": float(np.percentile(one, 50)),
        "single_p99_ms": float(np.percentile(one, 99)),
        "batch_p50_ms": float(np.percentile(many, 50)),
        "batch_p99_ms": float(np.percentile(many, 99)),
        "load_ms": 1000 * (loaded - start),
        "memory_mib": (max(by_loading, 0) + max(by_predicting, 0)) / _MIB,
    }


def _repeat_rows(rows: pa.Table, first: int, count: int) -> pa.Table:
    """So many rows, from the start again where there are no more."""
    return rows.take(np.arange(first, first + count) % rows.num_rows)


def _measure_latencies_ms(requests: Sequence[Callable[[], object]], count: int) -> list[float]:
    """Milliseconds of each of so many predictions, which take turns on `requests`."""
    for n in range(WARM_UP_REQUESTS):
        requests[n % len(requests)]()
    found = []
    for n in range(count):
        request = requests[n % len(requests)]
        start = time.perf_counter_ns()
        request()
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found


def run_serving_job(job_file: Path) -> None:
    about = json.loads(job_file.read_text())
    try:
        found = measure_loaded_model(Path(about["folder"]), pq.read_table(about["rows"]))
    except ScoringError as error:
        sys.exit(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    run_serving_job(Path(sys.argv[1]))
