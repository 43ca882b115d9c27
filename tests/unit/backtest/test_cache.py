"""What a backtest measures is the metric of the gate, with all that the gate says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evergreen.backtest.cache import BacktestCache
from support.ledgers import ledger_model

pytestmark = pytest.mark.unit

OWN = {"kind": "threshold", "metric": "metrics_of_a_test:measure", "at_most": 1.0, "higher_is_better": False}
GROUPS = {"kind": "by_slice", "metric": "auc", "group_by": "upper(carrier)", "margin": 0.1}


def cache(folder: Path, gate: Mapping[str, object]) -> BacktestCache:
    return BacktestCache(ledger_model("flight_delay", gates=[gate, GROUPS]), {}, folder)


def test_all_that_the_gate_says_of_its_metric_names_what_was_measured(tmp_path: Path) -> None:
    plain = cache(tmp_path, OWN)
    for change in ({"columns": ["distance"]}, {"higher_is_better": True, "at_most": None, "at_least": 0.1}):
        assert cache(tmp_path, OWN | change)._metric != plain._metric, change
    assert cache(tmp_path, OWN | {"at_most": 2.0})._metric == plain._metric


def test_a_metric_gets_the_groups_of_its_rows(tmp_path: Path) -> None:
    table = pa.table({"carrier": ["aa", "b'", None, "aa"], "distance": [1.0, 2.0, 3.0, 4.0]})
    rows = np.array([False, True, True, True])
    details = cache(tmp_path, OWN | {"columns": ["distance"]})._row_details(table, rows, np.zeros(3))
    assert details is not None
    found = details.describe(np.zeros(3), np.zeros(3), np.ones(3))
    assert found.groups["upper(carrier)"].tolist() == ["B'", None, "AA"]
    assert found.columns["distance"].tolist() == [2.0, 3.0, 4.0]
