"""What training cost: the seconds that each attempt occupied CPUs, memory and GPUs, priced from one table.

The table is a TOML file; a GPU type without a price of its own costs `default`::

    currency = "USD"

    [on_demand]
    cpu_hour = 0.033
    memory_gib_hour = 0.0044
    gpu_hour = { default = 2.10, "NVIDIA-A100-SXM4-80GB" = 3.67 }

    [spot]
    ...

An attempt counts from its start to its last heartbeat. Other charges of a provider, such as for a node that starts or
idles, are not included.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from evergreen.errors import Fault, SpecError
from evergreen.spec import Frozen
from evergreen.training.attempt import Attempt


class HourlyRates(Frozen):
    """Prices per hour."""

    cpu_hour: float = Field(ge=0)
    memory_gib_hour: float = Field(ge=0)
    gpu_hour: Mapping[str, float] = Field(default_factory=dict, description="by type; `default`: any other")


class PriceTable(Frozen):
    """The table of prices."""

    currency: str = Field(min_length=1)
    on_demand: HourlyRates
    spot: HourlyRates

    @classmethod
    def read(cls, file: Path) -> PriceTable:
        """Read the table from a TOML file; a SpecError lists all its faults."""
        try:
            return cls.model_validate(tomllib.loads(file.read_text()))
        except ValidationError as error:
            details = error.errors(include_url=False)
            faults = [Fault(f"{file}: {'.'.join(map(str, detail['loc']))}", detail["msg"]) for detail in details]
        except (OSError, tomllib.TOMLDecodeError) as error:
            faults = [Fault(str(file), str(error), "see docs/guides/kubernetes.md")]
        raise SpecError("prices", faults)


@dataclass(frozen=True)
class TrainingCost:
    """A sum over attempts. `price` is None without a table, or if it has no price for a GPU that was used."""

    attempts: int
    cpu_seconds: float
    memory_gib_seconds: float
    gpu_seconds: float
    price: float | None
    currency: str = ""

    @property
    def summary(self) -> str:
        """One line for a model version."""
        hours = f"{self.gpu_seconds / 3600:.2f} GPU hours, {self.cpu_seconds / 3600:.2f} CPU hours"
        price = "" if self.price is None else f", {self.price:.2f} {self.currency}"
        return f"{hours} in {self.attempts} attempt{'s' if self.attempts != 1 else ''}{price}"

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of an MLflow run, by name; without those that are unknown."""
        values = asdict(self)
        del values["currency"]
        return {f"cost.{name}": float(value) for name, value in values.items() if value is not None}


def total_cost(attempts: Sequence[Attempt], prices: PriceTable | None) -> TrainingCost:
    """Return the cost of all `attempts` together."""
    occupied = [(attempt.duration_seconds, attempt.allocation) for attempt in attempts]
    attempt_prices = [_attempt_price(attempt, prices) for attempt in attempts] if prices else [None]
    known_prices = [price for price in attempt_prices if price is not None]
    return TrainingCost(
        attempts=len(occupied),
        cpu_seconds=sum(seconds * allocation.cpu for seconds, allocation in occupied),
        memory_gib_seconds=sum(seconds * allocation.memory_gib for seconds, allocation in occupied),
        gpu_seconds=sum(seconds * allocation.gpu for seconds, allocation in occupied),
        price=sum(known_prices) if len(known_prices) == len(attempt_prices) else None,
        currency=prices.currency if prices else "",
    )


def _attempt_price(attempt: Attempt, prices: PriceTable) -> float | None:
    allocation = attempt.allocation
    rates = prices.spot if allocation.spot else prices.on_demand
    gpu_hour = rates.gpu_hour.get(allocation.gpu_type or "default", rates.gpu_hour.get("default"))
    if allocation.gpu and gpu_hour is None:
        return None
    per_hour = allocation.cpu * rates.cpu_hour + allocation.memory_gib * rates.memory_gib_hour
    return attempt.duration_seconds / 3600 * (per_hour + allocation.gpu * (gpu_hour or 0))
