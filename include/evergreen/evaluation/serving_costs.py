"""What a candidate costs to serve, measured in a process that does nothing else.

Run as `python -m evergreen.evaluation.serving_costs job.json`: loads the model that the job names, predicts, and prints
the costs as its last line.
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
from evergreen.training.attempt import trainer_environment
from evergreen.training.job import RESULT_FILE

SINGLE_REQUESTS, BATCH_REQUESTS, BATCH_ROWS = 1000, 50, 1000
DISTINCT_ROWS = 5 * BATCH_ROWS
WARM_UP_REQUESTS = 20
MEASUREMENT_TIMEOUT_S = 300

_MIB = 2**20


def measure_serving_costs(
    model: ModelSpec, candidate: datasets.Manifest, holdout: pa.Table
) -> dict[str, float] | MissingEvidence:
    """Return each `evergreen.spec.gates.ServingQuantity` of the candidate, predicting rows of `holdout`.

    Latencies, in ms, are of one prediction from a row (or a batch of 1,000 rows), as the model's library takes it, to a
    probability, on one thread, as in a worker that serves requests: without fetching features or sending anything.
    Percentiles are of 1,000 single rows and 50 batches, after a warm-up. `size_mib` is of the model's files.
    `memory_mib` is the growth of the process's resident memory by loading and predicting, its libraries loaded before.
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
        try:
            run = subprocess.run(
                [sys.executable, "-m", __name__, str(job)],
                capture_output=True,
                text=True,
                env=trainer_environment(),
                timeout=MEASUREMENT_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return MissingEvidence(f"serving could not be measured: the process ran for {MEASUREMENT_TIMEOUT_S} s")
    if run.returncode:
        line = "".join((run.stderr or run.stdout).strip().splitlines()[-1:])
        return MissingEvidence(
            f"serving could not be measured: the process ended with exit code {run.returncode}: {line}"
        )
    costs: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return {**costs, "size_mib": size / _MIB}


def measure_loaded_model(folder: Path, rows: pa.Table) -> dict[str, float]:
    """Load the model in `folder`, predict `rows` in this process, and return all quantities but the size.

    Raises:
        ScoringError: the model cannot be loaded, or cannot predict such rows.
    """
    import psutil

    file = predictions.model_file(folder)
    predictor_class = predictors.PREDICTORS[file.name]
    import_module(predictor_class.library)  # its memory does not count
    memory = psutil.Process().memory_info
    rss, start = memory().rss, time.perf_counter()
    predictor = predictor_class(file, threads=1)
    load_ms, load_growth = 1000 * (time.perf_counter() - start), memory().rss - rss
    predictor.check_columns(rows.column_names)
    single = [predictor.prepare_request(_repeat_rows(rows, n, 1)) for n in range(SINGLE_REQUESTS)]
    batches = [
        predictor.prepare_request(_repeat_rows(rows, n, BATCH_ROWS)) for n in range(0, DISTINCT_ROWS, BATCH_ROWS)
    ]
    rss = memory().rss
    single_ms = _measure_latencies_ms(single, SINGLE_REQUESTS)
    batch_ms = _measure_latencies_ms(batches, BATCH_REQUESTS)
    predict_growth = memory().rss - rss
    return {
        "single_p50_ms": float(np.percentile(single_ms, 50)),
        "single_p99_ms": float(np.percentile(single_ms, 99)),
        "batch_p50_ms": float(np.percentile(batch_ms, 50)),
        "batch_p99_ms": float(np.percentile(batch_ms, 99)),
        "load_ms": load_ms,
        "memory_mib": (max(load_growth, 0) + max(predict_growth, 0)) / _MIB,
    }


def _repeat_rows(rows: pa.Table, start: int, count: int) -> pa.Table:
    """Return `count` rows, beginning again after the last one."""
    return rows.take(np.arange(start, start + count) % rows.num_rows)


def _measure_latencies_ms(requests: Sequence[Callable[[], object]], count: int) -> list[float]:
    """Return the milliseconds of each of `count` predictions, which take turns on `requests`."""
    for n in range(WARM_UP_REQUESTS):
        requests[n % len(requests)]()
    latencies = []
    for n in range(count):
        request = requests[n % len(requests)]
        start = time.perf_counter_ns()
        request()
        latencies.append((time.perf_counter_ns() - start) / 1e6)
    return latencies


if __name__ == "__main__":
    paths = json.loads(Path(sys.argv[1]).read_text())
    try:
        measured = measure_loaded_model(Path(paths["folder"]), pq.read_table(paths["rows"]))
    except ScoringError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(measured) + "\n")
