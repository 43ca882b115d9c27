"""The pure parts of `benchmarks/injected_faults.py`: each fault is what it is called, and what finds it is named."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np
import pandas as pd
import pytest

import injected_faults as faults
from evergreen.monitoring.record import AlarmRecord, ChangeRecord
from injected_faults import FAULTS, START, Detection
from measuring.deliveries import RawDay, days, draw_days

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def raw() -> Sequence[RawDay]:
    return draw_days(START + 2, seed=1)


def inject(name: str, raw: Sequence[RawDay], number: int = START) -> RawDay:
    return FAULTS[name](raw, number, np.random.default_rng(1))


def parcels(day: RawDay) -> pd.DataFrame:
    assert day.parcels is not None
    return day.parcels


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_changes_its_day_and_no_other(name: str, raw: Sequence[RawDay]) -> None:
    before = draw_days(START + 2, seed=1)
    faulty = inject(name, raw)
    changed = [
        table is None or not table.equals(usual)
        for table, usual in ((faulty.parcels, raw[START].parcels), (faulty.readings, raw[START].readings))
    ]
    assert sum(changed) == 1
    assert all(parcels(day).equals(parcels(same)) for day, same in zip(raw, before, strict=True))


def test_a_concept_shift_keeps_inputs_and_labels(raw: Sequence[RawDay]) -> None:
    usual, faulty = parcels(raw[START]), parcels(inject("concept shift: labels dealt anew", raw))
    assert usual.drop(columns="late").equals(faulty.drop(columns="late"))
    assert faulty.groupby("service").late.sum().equals(usual.groupby("service").late.sum())
    assert faulty[["distance", "late"]].corr().iloc[0, 1] < 0.3 * usual[["distance", "late"]].corr().iloc[0, 1]


def test_a_clock_moves_rows_to_the_next_day_and_loses_none(raw: Sequence[RawDay]) -> None:
    first, second = (parcels(inject("clock skew: 3 hours", raw, number)) for number in (START, START + 1))
    for number, table in ((START, first), (START + 1, second)):
        assert set(table.made_at.dt.strftime("%Y-%m-%d")) == set(days(number, number + 1))
    assert first.made_at.min() - parcels(raw[START]).made_at.min() == faults.SKEW
    from_first = second[second.parcel.isin(parcels(raw[START]).parcel)]
    assert len(first) + len(from_first) == len(parcels(raw[START]))


def alarm(opened: date, name: str = "level", rule: str = "drift") -> AlarmRecord:
    change = ChangeRecord.model_validate({"column": "t.x", "measure": name, "deviation": 3.0, "effect": 0.1})
    return AlarmRecord.model_validate({"rule": rule, "opened": opened, "closed": None, "changes": (change,)})


def test_what_found_a_fault_is_named_earliest_first() -> None:
    start = date(2024, 5, 10)
    alarms = [
        alarm(date(2024, 5, 9)),
        alarm(date(2024, 5, 12), "performance", "performance"),
        alarm(date(2024, 5, 13), "spread"),
    ]
    refusals = [("2024-05-12", "x has 3 rows"), ("2024-05-11", "x has 2 rows")]
    assert faults.find_detections(alarms, ["no labels"], refusals, start) == [
        Detection("refused", 2, "x has 2 rows"),
        Detection("problem", 3, "no labels"),
        Detection("drift", 4, "t.x spread (+3.0 sd between days)"),
        Detection("performance", 5, "t.x performance (+3.0 sd between days)"),
    ]
    assert faults.count_false_alarms(alarms, start) == 1
    assert faults.find_detections(alarms[:1], [], [], start) == []
