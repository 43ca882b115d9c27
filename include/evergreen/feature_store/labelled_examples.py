"""The examples of one period whose label was known at some instant, joined with the features known at prediction."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from evergreen.errors import InputsChangedError
from evergreen.feature_store import training_sets
from evergreen.feature_store.examples import Selection
from evergreen.feature_store.scoring_examples import scoring_inputs
from evergreen.feature_store.seasonal_columns import SEASONAL_FILE
from evergreen.feature_store.seasonal_naive import seasonal_inputs, write_seasonal_naive
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest, PublishedFile
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec.model import ModelSpec
from evergreen.storage import file_sha256
from evergreen.window import Window


@contextmanager
def open_labelled_examples(
    model: ModelSpec, window: Window, dataset: Dataset, known_before: datetime
) -> Iterator[tuple[Path, Path | None, Manifest]]:
    """Yield a temporary file with the examples of a period, that of a forecast's seasonal columns, and a manifest.

    The first file is as those of `open_scoring_examples`, with the columns `label` and `label_known_at` as well.

    Args:
        model: its spec.
        window: one period.
        dataset: where Spark writes, if it joins them.
        known_before: only rows with a label that was known before this instant are yielded.

    Raises:
        SpecError, InputsChangedError: as `open_scoring_examples`.
    """
    inputs = _labelled_inputs(model, window)
    with (
        tempfile.TemporaryDirectory() as scratch,
        training_sets.open_examples(model, window.periods, dataset) as examples,
    ):
        examples.select({"holdout": Selection(window.start, window.end, known_before)})
        training_sets.join_features(model, examples, inputs)
        file, seasonal = examples.write_files(Path(scratch))["holdout"], None
        if model.forecast:
            seasonal = file.with_name(f"{SEASONAL_FILE}.parquet")
            write_seasonal_naive(model, file, inputs, seasonal)
        if _labelled_inputs(model, window) != inputs:
            raise InputsChangedError("features were republished while the examples were read; clear this task")
        schema = {field.name: str(field.type) for field in pq.read_schema(file)}
        rows = pq.read_metadata(file).num_rows
        entry = PublishedFile(file.name, file_sha256(file), file.stat().st_size, rows, schema)
        partition = datasets.period_partition(window.start)
        yield file, seasonal, Manifest(partition, compute_fingerprint(inputs), inputs, {"holdout": entry})


def _labelled_inputs(model: ModelSpec, window: Window) -> dict[str, Any]:
    weight = {"weight": model.weight} if model.weight else {}
    return scoring_inputs(model, window) | seasonal_inputs(model, window.start, window.end) | weight
