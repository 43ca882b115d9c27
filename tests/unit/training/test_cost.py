"""Training cost: seconds times the allocation, times its price."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evergreen.errors import SpecError
from evergreen.training.attempt import Attempt, ResourceAllocation
from evergreen.training.cost import PriceTable, total_cost

pytestmark = pytest.mark.unit

TABLE = """
currency = "EUR"
[on_demand]
cpu_hour = 0.10
memory_gib_hour = 0.01
gpu_hour = { default = 2.0, big = 4.0 }
[spot]
cpu_hour = 0.05
memory_gib_hour = 0.005
gpu_hour = { default = 0.5 }
"""
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def prices(tmp_path: Path) -> PriceTable:
    (tmp_path / "prices.toml").write_text(TABLE)
    return PriceTable.read(tmp_path / "prices.toml")


def attempt(hours: float, *, ended: bool = True, **allocation: Any) -> Attempt:
    end = START + timedelta(hours=hours)
    return Attempt(
        id="a",
        dag_run="r",
        model="m",
        team="t",
        allocation=ResourceAllocation(**allocation),
        started_at=START,
        last_heartbeat=end,
        ended_at=end if ended else None,
    )


def test_total_cost_prices_each_allocation(prices: PriceTable) -> None:
    cost = total_cost(
        [
            attempt(2, cpu=4, memory_gib=10),
            attempt(1, cpu=2, memory_gib=8, gpu=2, gpu_type="big"),
            attempt(1, cpu=2, memory_gib=8, gpu=1, gpu_type="big", spot=True),
        ],
        prices,
    )
    assert cost.attempts == 3
    assert cost.cpu_seconds == (8 + 2 + 2) * 3600
    assert cost.memory_gib_seconds == (20 + 8 + 8) * 3600
    assert cost.gpu_seconds == 3 * 3600
    expected = 2 * (0.4 + 0.1) + (0.2 + 0.08 + 8.0) + (0.1 + 0.04 + 0.5)
    assert cost.price == pytest.approx(expected)
    assert cost.summary == "3.00 GPU hours, 12.00 CPU hours in 3 attempts, 9.92 EUR"


def test_killed_attempt_counts_until_its_last_heartbeat(prices: PriceTable) -> None:
    assert total_cost([attempt(0.5, ended=False, cpu=2)], prices).cpu_seconds == 3600


def test_cost_without_prices_has_seconds_only(prices: PriceTable) -> None:
    cost = total_cost([attempt(1, cpu=1)], None)
    assert cost.price is None
    assert cost.metrics == {
        "cost.attempts": 1.0,
        "cost.cpu_seconds": 3600.0,
        "cost.memory_gib_seconds": 0.0,
        "cost.gpu_seconds": 0.0,
    }


def test_gpu_without_price_makes_the_sum_unknown(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(TABLE.replace("default = 0.5", "other = 0.5"))
    prices = PriceTable.read(tmp_path / "prices.toml")
    assert total_cost([attempt(1, cpu=1), attempt(1, gpu=1, gpu_type="big", spot=True)], prices).price is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cpu_hour = 0.10", "cpu_hour = -1"), "on_demand.cpu_hour"),
        (("[spot]", "[sport]"), "spot: Field required"),
        (('"EUR"', '"EUR'), "prices.toml"),
    ],
)
def test_invalid_price_table_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "prices.toml").write_text(TABLE.replace(*change))
    with pytest.raises(SpecError, match=message):
        PriceTable.read(tmp_path / "prices.toml")


def test_missing_price_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        PriceTable.read(tmp_path / "prices.toml")
