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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evergreen import lake
from evergreen.errors import ScoringError
from evergreen.evaluation import scoring
from evergreen.gates.evidence import Missing
from evergreen.model import Model
from evergreen.training import local
from evergreen.training.job import RESULT

SINGLE, BATCHES, BATCH_ROWS = 1000, 50, 1000
WARM_UP = 20
PATIENCE_S = 300

_MIB = 2**20


def measure(model: Model, candidate: lake.Manifest, table: pa.Table) -> dict[str, float] | Missing:
    """Each `evergreen.gates.spec.Quantity` of the candidate, predicting rows of `table`.

    Latencies, in ms, are of one prediction from a numpy row (or batch of 1,000 rows) to a probability, on one
    thread, as a worker that serves requests has: the features are there already, nothing is sent. Percentiles are
    of 1,000 single rows and 50 batches, after a warm-up. `size_mib` is of the model's files. `memory_mib` is the
    growth of the process's resident memory by loading and predicting, its libraries loaded before.
    """
    if not table.num_rows:
        return Missing("serving cannot be measured: the holdout has no rows to predict")
    features = list(candidate.inputs["features"])
    if absent := sorted(set(features) - set(table.column_names)):
        return Missing(f"serving cannot be measured: the holdout lacks {', '.join(absent)}")
    try:
        rows = table.select(features).to_pandas().to_numpy(np.float32, na_value=np.nan)
    except (TypeError, ValueError) as error:
        return Missing(f"serving cannot be measured: its inputs are not all numbers: {error}")
    size = sum(file.size for name, file in candidate.files.items() if name != RESULT)
    with tempfile.TemporaryDirectory() as scratch, scoring.candidate_folder(model, candidate) as folder:
        np.save(Path(scratch) / "rows.npy", rows, allow_pickle=False)
        job = Path(scratch) / "job.json"
        job.write_text(json.dumps({"folder": str(folder), "rows": str(Path(scratch) / "rows.npy")}))
        found = _in_a_process(job)
    return found if isinstance(found, Missing) else {**found, "size_mib": size / _MIB}


def _in_a_process(job: Path) -> dict[str, float] | Missing:
    command = [sys.executable, "-m", "evergreen.evaluation.serving", str(job)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=local.environment(), timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Missing(f"serving could not be measured: the process was not done after {PATIENCE_S} s")
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return Missing(
            f"serving could not be measured: the process ended with exit code {done.returncode}: {''.join(last)}"
        )
    return {name: float(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def figures(folder: Path, rows: NDArray[np.float32]) -> dict[str, float]:
    """Load the model in `folder` and predict `rows`, (n, inputs), in this process; all quantities but the size.

    Raises:
        ScoringError: it cannot be loaded, or cannot predict such rows.
    """
    import psutil
    import xgboost  # noqa: F401 - before memory is looked at

    single = [rows[[n % len(rows)]] for n in range(SINGLE)]
    batches = [rows[np.arange(n, n + BATCH_ROWS) % len(rows)] for n in range(0, 5 * BATCH_ROWS, BATCH_ROWS)]
    me = psutil.Process()
    before = me.memory_info().rss
    start = time.perf_counter()
    booster = scoring.load(folder)
    booster.set_param({"nthread": 1})
    loaded = time.perf_counter()
    if booster.num_features() != rows.shape[1]:
        raise ScoringError(
            f"takes {booster.num_features()} inputs, but was to predict rows of {rows.shape[1]}"
        )
    after = me.memory_info().rss
    one = _latencies(booster.inplace_predict, single, SINGLE)
    many = _latencies(booster.inplace_predict, batches, BATCHES)
    after = max(after, me.memory_info().rss)
    return {
        "single_p50_ms": float(np.percentile(one, 50)),
        "single_p99_ms": float(np.percentile(one, 99)),
        "batch_p50_ms": float(np.percentile(many, 50)),
        "batch_p99_ms": float(np.percentile(many, 99)),
        "load_ms": 1000 * (loaded - start),
        "memory_mib": max(after - before, 0) / _MIB,
    }


def _latencies(predict: Callable[[Any], Any], parts: list[Any], times: int) -> list[float]:
    """Milliseconds of each of so many predictions, which take turns on `parts`."""
    for n in range(WARM_UP):
        predict(parts[n % len(parts)])
    found = []
    for n in range(times):
        start = time.perf_counter_ns()
        predict(parts[n % len(parts)])
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found


def main(job: Path) -> None:
    about = json.loads(job.read_text())
    try:
        found = figures(Path(about["folder"]), np.load(about["rows"], allow_pickle=False))
    except ScoringError as error:
        sys.exit(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
