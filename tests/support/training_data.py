"""Synthetic training data: columns of each type, with missing values, and a label that follows from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.storage import file_sha256
from evergreen.training import Job, runner

NUMBERS = ("departure_minute", "rain", "late_rate")
CATEGORIES = {"carrier": ("AA", "B6", "UA"), "dest": ("ATL", "LAX", "ORD", "SFO")}
INPUTS = ("departure_minute", "carrier", "rain", "dest", "late_rate")
"""In the model's order, which mixes types."""


def table(rows: int, seed: int = 7) -> pa.Table:
    """Return rows with the inputs and `label`; the column `row` numbers them, to see which rows were read, and when."""
    rng = np.random.default_rng(seed)
    minute = rng.integers(0, 1440, rows)
    rain, rate = rng.gamma(0.5, size=rows), rng.random(rows)
    codes = {name: rng.integers(0, len(words), rows) for name, words in CATEGORIES.items()}
    logit = minute / 720 + rain + 2 * rate - 4 + codes["carrier"] - (codes["dest"] == 2)
    texts = {
        name: pa.DictionaryArray.from_arrays(pa.array(codes[name], mask=rng.random(rows) < 0.02), [*CATEGORIES[name]])
        for name in CATEGORIES
    }
    return pa.table(
        {
            "row": np.arange(rows, dtype=np.int32),
            "departure_minute": minute.astype(np.int32),
            "carrier": texts["carrier"].cast(pa.string()),
            "rain": pa.array(rain, mask=rng.random(rows) < 0.1),
            "dest": texts["dest"].cast(pa.string()),
            "late_rate": rate,
            "label": (rng.logistic(size=rows) < logit).astype(np.int32),
        }
    )


def write(data: pa.Table, file: Path, group_rows: int) -> Path:
    pq.write_table(data, file, row_group_size=group_rows)
    return file


def net_job(train: Path, processes: int = 1, **parameters: object) -> Job:
    """Return a job of `flight_delay_net` that takes a second."""
    return _job(
        "flight_delay_net",
        train,
        INPUTS,
        processes,
        {
            "embedding_sizes": {"carrier": 2, "dest": 3},
            "min_category_rows": 10,
            "hidden_sizes": [16, 8],
            "dropout": 0.1,
            "mask_rate": 0.02,
            "epochs": 3,
            "batch_rows": 256,
            "learning_rate": 0.01,
            "weight_decay": 0.01,
            "shuffle_rows": 1024,
            **parameters,
        },
    )


def trees_job(train: Path, **parameters: object) -> Job:
    """Return a job of `flight_delay` that takes a second; its trees take numbers only."""
    sampling = {"subsample": 0.8, "colsample_bytree": 0.6}
    return _job("flight_delay", train, NUMBERS, 1, {"rounds": 12, "max_depth": 3, **sampling, **parameters})


def _job(model: str, train: Path, features: tuple[str, ...], processes: int, parameters: dict[str, object]) -> Job:
    return Job(
        model=model,
        fingerprint="f" * 64,
        training_data=str(train),
        training_data_sha256=file_sha256(train),
        training_data_size=train.stat().st_size,
        features=features,
        label="label",
        parameters=parameters,
        seed=2013,
        threads=2,
        gpu=0,
        processes=processes,
        checkpoint_seconds=3600,
        modules=runner.training_code(model, ()),
        libraries={},
    )
