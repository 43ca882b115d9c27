"""The examples of one period without their labels, each joined with the features that were known when it is predicted.

What a training set or a look would have of the period, whether or not its labels are known.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from evergreen.errors import InputsChangedError
from evergreen.feature_store import training_sets
from evergreen.feature_store.examples import Selection
from evergreen.feature_store.training_sets import TrainingPeriods
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest, PublishedFile
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec.model import ModelSpec
from evergreen.storage import file_sha256
from evergreen.window import Window


def scoring_inputs(model: ModelSpec, window: Window) -> dict[str, Any]:
    """Return what the examples of `window`, which is one period, depend on.

    Raises:
        RawDataError: the period has no published features.
        StaleFeaturesError: features in reach were made by other code, parameters or registers than the period's own.
    """
    periods = TrainingPeriods(train_end=window.start, holdout_start=window.start, holdout_end=window.end)
    return training_sets.example_inputs(model, window, periods, window.periods)


@contextmanager
def open_scoring_examples(
    model: ModelSpec, window: Window, inputs: dict[str, Any], dataset: Dataset
) -> Iterator[tuple[Path, Manifest]]:
    """Yield a temporary Parquet file with all examples of a period, and the manifest that it would have.

    `inputs` are its `scoring_inputs`. The file has the columns of the spine without those of the label, and every
    feature of the model's service, named `view__feature`, ordered by time. In the manifest, as in that of a look, it
    is named `holdout`. Spark, if it joins them, writes to a folder of `dataset`.

    Raises:
        SpecError: columns have types that do not fit together, or that a model does not take.
        InputsChangedError: the period was republished while it was read.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        training_sets.open_examples(model, window.periods, dataset) as examples,
    ):
        examples.select({"holdout": Selection(window.start, window.end)})
        training_sets.join_features(model, examples, inputs)
        file = examples.write_files(Path(scratch))["holdout"]
        if scoring_inputs(model, window) != inputs:
            raise InputsChangedError("features were republished while the examples were read; clear this task")
        schema = {field.name: str(field.type) for field in pq.read_schema(file)}
        rows = pq.read_metadata(file).num_rows
        entry = PublishedFile(file.name, file_sha256(file), file.stat().st_size, rows, schema)
        partition = datasets.period_partition(window.start)
        yield file, Manifest(partition, compute_fingerprint(inputs), inputs, {"holdout": entry})
