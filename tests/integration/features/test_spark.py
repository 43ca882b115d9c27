"""`EVERGREEN_OFFLINE_STORE=spark` builds the same training set as the default, from the same published files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from evergreen.feature_store import training_sets
from evergreen.periods import Duration
from evergreen.spec import loader
from evergreen.window import RunReason, Window

pytestmark = pytest.mark.integration


def rows() -> pd.DataFrame:
    """Training rows as of 12 January; few days, because Spark takes its time."""
    model = loader.load_spec("flight_delay").model_copy(update={"holdout": Duration(5, "d")})
    window = Window.from_range("2013-01-03", "2013-01-12", RunReason.MANUAL, "America/New_York")
    manifest = training_sets.build_training_set(model, window)
    published = training_sets.training_set_dataset(model)
    return (
        pq.read_table(published.file_path(manifest, "train"))
        .to_pandas()
        .sort_values("flight_id")
        .reset_index(drop=True)
    )


def test_the_spark_store_gives_the_same_training_set(
    own_january: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows()
    monkeypatch.setenv("EVERGREEN_OFFLINE_STORE", "spark")
    monkeypatch.setenv("EVERGREEN_FEAST_REGISTRY", f"sqlite:///{own_january}/spark-registry.db")
    use_home(own_january)
    (own_january / "lake/training_sets/flight_delay/_manifests/as_of=2013-01-12.json").unlink()
    pd.testing.assert_frame_equal(rows(), expected, check_dtype=False, check_like=True)
