"""What must hold of any features: broken in every usual way, one at a time, and found by table and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from evergreen.features import checks, invariants
from evergreen.features.build import compute_features
from support import visits
from support.small_models import UseModels
from support.visits import DAY, SPEC

pytestmark = pytest.mark.integration


@pytest.fixture
def built(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, use_models: UseModels):
    """Return a function that computes the features of a day with these expressions, and returns model and folder."""

    def build(rows: int = visits.COUNT, **changes: str):
        model = visits.write_model(tmp_path / "models", monkeypatch, use_models, **changes)
        visits.deliver(rows)
        checks.validate_raw_files(model, [DAY])
        folder = tmp_path / "built"
        folder.mkdir()
        compute_features(model, {DAY: folder})
        return model, folder

    return build


@pytest.mark.parametrize(
    ("broken", "table", "column"),
    [
        ({"spent": "F.rand()"}, "spending", "spent"),
        ({"spent": "F.rand(7)"}, "spending", "spent"),
        ({"spent": "F.monotonically_increasing_id()"}, "spending", "spent"),
        # The same values, in other rows: of visits at the same minute any one comes first.
        ({"rank": 'F.row_number().over(Window.partitionBy(F.lit(1)).orderBy("at"))'}, "examples", "rank"),
        ({"rank": 'F.first("visit").over(Window.partitionBy("at"))'}, "examples", "rank"),
    ],
)
def test_what_depends_on_the_order_of_raw_rows_is_named(built, tmp_path: Path, broken, table, column) -> None:
    model, folder = built(**broken)
    [fault] = invariants.find_order_faults(model, DAY, folder, tmp_path)
    assert fault.location == f"{DAY} {table}"
    assert fault.problem.endswith(f", in {column}"), fault.problem
    assert {path.name for path in tmp_path.iterdir()} == {"built", "home", "models"}


def test_sound_features_have_no_fault(built, tmp_path: Path) -> None:
    model, folder = built()
    assert invariants.has_known_rows(model)
    assert invariants.find_order_faults(model, DAY, folder, tmp_path) == []
    assert invariants.find_future_faults(model, DAY, folder, tmp_path) == []


def test_the_last_digit_of_a_sum_is_no_fault(built, tmp_path: Path) -> None:
    # Added in the order in which the rows come.
    in_order = 'F.expr("aggregate(collect_list(amount) over (partition by shop), 0D, (a, b) -> a + b * 1e-3)")'
    model, folder = built(spent=in_order)
    again = tmp_path / "again"
    again.mkdir()
    compute_features(model, {DAY: again}, lambda _, rows: rows.repartition(5))
    one, other = ((place / "spending.parquet").read_bytes() for place in (folder, again))
    assert one != other, "the sums are equal in every digit, so nothing is shown"
    assert invariants.find_order_faults(model, DAY, folder, tmp_path) == []


@pytest.mark.parametrize(
    ("broken", "table", "column"),
    [
        ({"spent": 'F.sum("amount").over(DAY)'}, "spending", "spent"),
        ({"spent": 'F.lead("amount").over(SEEN)'}, "spending", "spent"),
        ({"rank": "F.count(F.lit(1)).over(DAY)"}, "examples", "rank"),
    ],
)
def test_what_uses_rows_that_were_known_later_is_named(built, tmp_path: Path, broken, table, column) -> None:
    model, folder = built(**broken)
    [fault] = invariants.find_future_faults(model, DAY, folder, tmp_path)
    assert fault.location == f"{DAY} {table}"
    assert "2024-03-05 03:15:00 UTC" in fault.problem
    assert fault.problem.endswith(f"in {column}"), fault.problem


def test_a_day_without_rows_is_sound(built, tmp_path: Path) -> None:
    model, folder = built(rows=0, spec=SPEC.replace('known_at="at",', 'known_at="at", empty_periods="delivered",'))
    assert invariants.find_order_faults(model, DAY, folder, tmp_path) == []
    assert invariants.find_future_faults(model, DAY, folder, tmp_path) == []


def test_nothing_is_said_about_the_future_without_known_at(built) -> None:
    model, _ = built(spec=SPEC.replace('known_at="at", ', ""))
    assert not invariants.has_known_rows(model)
