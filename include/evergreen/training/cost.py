"""What training cost: the seconds that each attempt held CPUs, memory and GPUs, priced from one table.

The table is a TOML file; what a kind of GPU costs falls back to `default`::

    currency = "USD"

    [on_demand]
    cpu_hour = 0.033
    memory_gib_hour = 0.0044
    gpu_hour = { default = 2.10, "NVIDIA-A100-SXM4-80GB" = 3.67 }

    [spot]
    ...

An attempt counts from its first line to its last sign of life. What a provider charges besides, such as a node
that starts or idles, is not in it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import Field, ValidationError

from evergreen.errors import Fault, SpecError
from evergreen.spec import Frozen
from evergreen.training.attempt import Attempt

_SECONDS_PER_HOUR = 3600
_DEFAULT_GPU_TYPE = "default"


class HourlyRates(Frozen):
    """Prices of an hour."""

    cpu_hour: float = Field(ge=0)
    memory_gib_hour: float = Field(ge=0)
    gpu_hour: Mapping[str, float] = Field(default_factory=dict, description="by kind; `default`: any other")


class PriceTable(Frozen):
    """The table."""

    currency: str = Field(min_length=1)
    on_demand: HourlyRates
    spot: HourlyRates

    @classmethod
    def read(cls, file: Path) -> PriceTable:
        """Raises:
        SpecError: it is missing or wrong; all faults are listed.
        """
        try:
            return cls.model_validate(tomllib.loads(file.read_text()))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise SpecError("prices", [Fault(str(file), str(error), "see docs/kubernetes.md")]) from None
        except ValidationError as error:
            faults = [
                Fault(f"{file}: {'.'.join(map(str, detail['loc']))}", detail["msg"])
                for detail in error.errors(include_url=False)
            ]
            raise SpecError("prices", faults) from None


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
        """For a person who looks at one version."""
        hours = f"{self.gpu_seconds / 3600:.2f} GPU hours, {self.cpu_seconds / 3600:.2f} CPU hours"
        paid = "" if self.price is None else f", {self.price:.2f} {self.currency}"
        return f"{hours} in {self.attempts} attempt{'s' if self.attempts != 1 else ''}{paid}"

    @property
    def metrics(self) -> dict[str, float]:
        """By the names that they have on a run of MLflow's; what is not known is left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "currency"}
        return {f"cost.{name}": float(value) for name, value in values.items() if value is not None}


def total_cost(attempts: Iterable[Attempt], prices: PriceTable | None) -> TrainingCost:
    """What all of `attempts` cost together."""
    known = list(attempts)
    each = [_attempt_price(attempt, prices) for attempt in known]
    return TrainingCost(
        attempts=len(known),
        cpu_seconds=sum(attempt.duration_seconds * attempt.allocation.cpu for attempt in known),
        memory_gib_seconds=sum(attempt.duration_seconds * attempt.allocation.memory_gib for attempt in known),
        gpu_seconds=sum(attempt.duration_seconds * attempt.allocation.gpu for attempt in known),
        price=None if prices is None or None in each else sum(price for price in each if price is not None),
        currency=prices.currency if prices else "",
    )


def _attempt_price(attempt: Attempt, prices: PriceTable | None) -> float | None:
    if prices is None:
        return None
    held = attempt.allocation
    rates = prices.spot if held.spot else prices.on_demand
    gpu_hour = rates.gpu_hour.get(held.gpu_type or _DEFAULT_GPU_TYPE, rates.gpu_hour.get(_DEFAULT_GPU_TYPE))
    if held.gpu and gpu_hour is None:
        return None
    an_hour = held.cpu * rates.cpu_hour + held.memory_gib * rates.memory_gib_hour + held.gpu * (gpu_hour or 0)
    return attempt.duration_seconds / _SECONDS_PER_HOUR * an_hour
