"""Training data that is made up: columns of each kind, with gaps, and a label that follows from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.lake import fingerprints
from evergreen.training import Job

NUMBERS = ("departure_minute", "rain", "late_rate")
CATEGORIES = {"carrier": ("AA", "B6", "UA"), "dest": ("ATL", "LAX", "ORD", "SFO")}
INPUTS = ("departure_minute", "carrier", "rain", "dest", "late_rate")
"""In the model's order, which mixes kinds."""


def table(rows: int, seed: int = 7) -> pa.Table:
    """Besides the inputs and `label`, `row` numbers them; as an input it tells which rows were read, and when."""
    draw = np.random.default_rng(seed)
    minute = draw.integers(0, 1440, rows)
    rain, rate = draw.gamma(0.5, size=rows), draw.random(rows)
    codes = {name: draw.integers(0, len(kinds), rows) for name, kinds in CATEGORIES.items()}
    logit = minute / 720 + rain + 2 * rate - 4 + codes["carrier"] - (codes["dest"] == 2)
    texts = {
        name: pa.DictionaryArray.from_arrays(pa.array(codes[name], mask=draw.random(rows) < 0.02), [*CATEGORIES[name]])
        for name in CATEGORIES
    }
    return pa.table(
        {
            "row": np.arange(rows, dtype=np.int32),
            "departure_minute": minute.astype(np.int32),
            "carrier": texts["carrier"].cast(pa.string()),
            "rain": pa.array(rain, mask=draw.random(rows) < 0.1),
            "dest": texts["dest"].cast(pa.string()),
            "late_rate": rate,
            "label": (draw.logistic(size=rows) < logit).astype(np.int32),
        }
    )


def write(data: pa.Table, file: Path, group_rows: int) -> Path:
    pq.write_table(data, file, row_group_size=group_rows)
    return file


def net_job(train: Path, processes: int = 1, **parameters: object) -> Job:
    """A job of `flight_delay_net` that is done in a second."""
    return _job(
        "flight_delay_net",
        train,
        INPUTS,
        processes,
        {
            "embedding": {"carrier": 2, "dest": 3},
            "rare": 10,
            "hidden": [16, 8],
            "dropout": 0.1,
            "masked": 0.02,
            "epochs": 3,
            "batch_rows": 256,
            "learning_rate": 0.01,
            "weight_decay": 0.01,
            "window_rows": 1024,
            **parameters,
        },
    )


def trees_job(train: Path, **parameters: object) -> Job:
    """A job of `flight_delay`, likewise; its trees take numbers only."""
    drawn = {"subsample": 0.8, "colsample_bytree": 0.6}
    return _job("flight_delay", train, NUMBERS, 1, {"rounds": 12, "max_depth": 3, **drawn, **parameters})


def _job(model: str, train: Path, features: tuple[str, ...], processes: int, parameters: dict[str, object]) -> Job:
    return Job(
        model=model,
        fingerprint="f" * 64,
        training_data=str(train),
        features=features,
        label="label",
        parameters=parameters,
        seed=2013,
        threads=2,
        gpu=0,
        processes=processes,
        checkpoint_seconds=3600,
        modules=fingerprints.code_of((f"evergreen_models.{model}.train",), ()),
        libraries={},
    )
