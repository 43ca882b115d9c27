"""The gate table shows the same numbers in every report, and needs no engine."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from evergreen.gates import AgainstChampionGate, BaselineGate, GateResult, SliceResult, ThresholdGate, decide_verdict
from evergreen.reports.formatting import format_number, format_percent, format_signed
from evergreen.reports.gate_table import GATE_COLUMNS, gate_markdown_table, gate_rows

pytestmark = pytest.mark.unit

GATES = (
    ThresholdGate(metric="brier", at_most=0.2),
    AgainstChampionGate(metric="auc", must_be="not_worse", margin=0.02),
    BaselineGate(metric="log_loss"),
)
RESULTS = [
    GateResult(gate="brier_threshold", outcome="not_computed", threshold=0.2, rows=3, reason="3 | 4\nrows"),
    GateResult(
        gate="auc_against_champion",
        outcome="failed",
        candidate=0.7,
        champion=0.75,
        interval=(-0.061, 0.043),
        threshold=-0.02,
        rows=5000,
        reason="too low",
    ),
    GateResult(
        gate="log_loss_prior_baseline",
        outcome="passed",
        candidate=0.4,
        interval=(0.1, 0.3),
        threshold=0,
        rows=5000,
        slices=(SliceResult(name="prior", rows=5000, candidate=0.6097, is_judged=True),),
        reason="better",
    ),
]


def test_gate_rows_show_limits_and_references() -> None:
    rows = gate_rows(decide_verdict(RESULTS), GATES)
    assert [tuple(row) for row in rows] == [
        ("brier_threshold", "–", "–", "–", "≤ 0.2", "? not computed", "3 | 4\nrows"),
        ("auc_against_champion", "0.7000", "0.7500", "−0.0610 … +0.0430", "≥ −0.02", "✗ failed", "too low"),
        ("log_loss_prior_baseline", "0.4000", "0.6097", "+0.1000 … +0.3000", "≥ 0", "✓ passed", "better"),
    ]
    assert all(len(row) == len(GATE_COLUMNS) for row in rows)


def test_gate_rows_without_specs_keep_the_numbers() -> None:
    rows = gate_rows(decide_verdict(RESULTS))
    assert [row.threshold for row in rows] == ["0.2", "−0.02", "–"]
    assert [row.reference for row in rows] == ["–", "0.7500", "–"]


def test_gate_markdown_table_has_a_line_per_gate() -> None:
    lines = gate_markdown_table(decide_verdict(RESULTS), GATES).splitlines()
    assert lines[0] == "| gate | candidate | champion, baseline | interval | threshold | outcome | reason |"
    assert lines[2] == r"| brier_threshold | – | – | – | ≤ 0.2 | ? not computed | 3 \| 4 rows |"
    assert len(lines) == 2 + len(RESULTS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.71234, "0.7123"),
        (-0.5, "−0.5000"),
        (0.00012345, "0.000123"),
        (12.3456, "12.35"),
        (12345.6, "12,346"),
        (1.5e12, "1.5e+12"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
        ("0 - 1", "0 - 1"),
    ],
)
def test_format_number(value: object, text: str) -> None:
    assert format_number(value) == text


def test_format_signed_and_percent() -> None:
    assert [format_signed(value) for value in (0.01, 0.0, -2.5)] == ["+0.0100", "0", "−2.5"]
    assert [format_percent(value) for value in (0.0219, None)] == ["2.19 %", "–"]


def test_importing_the_gate_table_loads_no_engine() -> None:
    engines = {"matplotlib", "numpy", "scipy", "jinja2"}
    code = f"import sys, evergreen.reports.gate_table; print(*{engines} & set(sys.modules))"
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
