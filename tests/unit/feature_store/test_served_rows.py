"""A join of what was served: DuckDB finds what a loop in Python finds, for any rows, delays and requests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.types import String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evergreen.feature_store.duckdb_examples import DuckDBExamples
from evergreen.feature_store.offline_store import RetrievalError, open_scratch_database
from evergreen.feature_store.repository import open_feature_store
from evergreen.feature_store.training_sets import TrainingPeriods, example_inputs
from evergreen.periods import Duration
from support import ponds as ponds_data
from support.calendars import DAYS
from support.examples_contract import (
    ALL,
    FEATURES,
    FIRST_DAY,
    START,
    Published,
    repo_config,
    served_values,
    spine,
    view,
)
from support.small_models import write_small_model

pytestmark = pytest.mark.unit

HALF_DAY = timedelta(hours=12)
# Two days in halves of a day: rows at the ends of periods, requests at the very moments of loads, ties and both orders.
KEYS = st.sampled_from(["x", "x", "y", None])
ROWS = st.lists(st.fixed_dictionaries({"a": KEYS, "at": st.integers(0, 8)}), max_size=12)
FEATURE_ROWS = st.lists(
    st.fixed_dictionaries({"a": KEYS, "day": st.integers(0, 1), "at": st.integers(-2, 3)}), max_size=12
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, FEATURE_ROWS, st.sampled_from(["0h", "12h", "1d"]), st.sampled_from([0, 2, 4]), st.booleans())
def test_rows_count_when_they_are_served(
    home: Path, request_rows: list, feature_rows: list, delay: str, ttl: int, in_buckets: bool
) -> None:
    days = [FIRST_DAY, DAYS.shift(FIRST_DAY, 1)]
    midnight = DAYS.start(FIRST_DAY)
    rows = [
        {"a": row["a"], "b": 1, "row": number, "event_timestamp": midnight + row["at"] * HALF_DAY}
        for number, row in enumerate(request_rows)
    ]
    features = [
        {
            "a": row["a"],
            "b": 1,
            "v": number,
            "day": days[row["day"]],
            "ts": midnight + (2 * row["day"] + row["at"]) * HALF_DAY,
        }
        for number, row in enumerate(sorted(feature_rows, key=lambda row: row["day"]))
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = [
            {
                "spine": spine(rows if day == FIRST_DAY else []),
                "rates": pa.Table.from_pylist([row for row in features if row["day"] == day], schema=FEATURES),
            }
            for day in days
        ]
        published, config = Published(folder, tables), repo_config(folder)
        rates = view("rates", published.path("rates"), {"a": String}, ttl * HALF_DAY, served_after=delay)
        with open_scratch_database(config) as con:
            examples = DuckDBExamples.from_files(con, "loans", "requests", "loss", published.spines, DAYS)
            examples.select(ALL)
            examples.join(config, [rates], ["rates:v"], 200.0 if in_buckets else None)
            joined = pq.read_table(examples.write_files(folder)["all"])
    ordered = [rows[number] for number in joined["row"].to_pylist()]
    assert len(ordered) == len(rows)
    length = Duration.parse(delay).length
    assert joined["rates__v"].to_pylist() == served_values(ordered, features, "a", ttl * HALF_DAY, length)


def test_inputs_of_a_training_set_say_when_rows_are_served(
    home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fingerprint is made of them. Views that declare nothing have the inputs that they had."""

    def view_inputs(served_after: str) -> dict[str, Any]:
        declared = ponds_data.DEFINITIONS.replace(
            "feature_source(features, table)", f"feature_source(features, table{served_after})"
        )
        model = write_small_model("ponds", tmp_path, monkeypatch, use_models, declared, model=ponds_data.SPEC)
        open_feature_store.cache_clear()
        ponds_data.publish(1, 2)
        window, periods = ponds_data.window(3), TrainingPeriods("2013-01-02", "2013-01-02", "2013-01-03")
        inputs: dict[str, Any] = example_inputs(model, window, periods, window.periods)["definitions"]["levels"]
        return inputs

    unset = view_inputs("")
    assert unset == {
        "table": "levels",
        "keys": {"pond": "STRING"},
        "key_columns": {},
        "ttl_seconds": 72 * 3600.0,
        "features": {"level": "DOUBLE"},
    }
    declared = {"delay": "6h", "period": "1d", "timezone": ponds_data.ZONE}
    assert view_inputs(', "6h" if features == "ponds" else None') == unset | {"served_after": declared}
    assert view_inputs(', "7h" if features == "ponds" else None') == unset | {
        "served_after": declared | {"delay": "7h"}
    }


def test_only_periods_of_the_lake_are_served(home: Path, tmp_path: Path) -> None:
    """Of any other file, nobody knows the period."""
    file = tmp_path / "rates.parquet"
    pq.write_table(FEATURES.empty_table(), file)
    published, config = Published(tmp_path, [{"spine": spine([{"event_timestamp": START}])}]), repo_config(tmp_path)
    rates = view("rates", file, {"a": String}, served_after="6h")
    with open_scratch_database(config) as con:
        examples = DuckDBExamples.from_files(con, "loans", "requests", "loss", published.spines, DAYS)
        examples.select(ALL)
        with pytest.raises(RetrievalError, match="is served_after periods, and not published in the lake"):
            examples.join(config, [rates], ["rates:v"])
