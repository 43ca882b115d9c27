"""The chance of a false promotion that each comparison with a champion may spend, bounded over the model's life.

A model is compared every week for years. With an error of 5 % in each comparison, a worse model would be promoted
several times a year. So `1 - confidence` of a gate is a budget for the model's whole life:

- The k-th comparison of the model receives γₖ = k^(-1.6) / ζ(1.6) of it; the shares add up to 1 over any number
  of comparisons (alpha-spending, in the form of Tian and Ramdas 2021, Statistical Methods in Medical Research
  30:976-993, "Online control of the familywise error rate").
- A comparison that passed was not false, or the budget is already exceeded: its share is carried over to the next
  one (online fallback, the same paper, section 3). So a model that improves keeps most of its budget.
- Holdout days that an earlier comparison used may have shaped this candidate, through the verdicts that followed. A
  verdict is one bit, so after j of them there are 2^j candidates that they may have led to, and each receives 2^(-j)
  of the share (the union bound over an adaptive analysis: Dwork et al. 2015, Science 349:636-638, "The reusable
  holdout", supplement). Nothing is carried into, or out of, such a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from sys import float_info
from typing import NamedTuple

_DECAY = 1.6


class AlphaSpend(NamedTuple):
    """What one gate spent in a comparison, and whether it passed."""

    gate: str
    alpha: float
    passed: bool


@dataclass(frozen=True)
class EarlierComparison:
    """One earlier verdict that spent confidence, on the days first ≤ day < end."""

    days: tuple[date, date]
    spending: tuple[AlphaSpend, ...]


def next_alpha(
    error_budget: float, gate_name: str, days: tuple[date, date], earlier_comparisons: Sequence[EarlierComparison]
) -> float:
    """Return the chance of a false promotion, in (0, 1), that the gate may spend on its next comparison.

    `error_budget` is the gate's budget for life, 1 - confidence; `days` are those of the holdout, first ≤ day < end;
    `earlier_comparisons` are all of the model, oldest first. Each gate has a budget of its own.
    """
    from scipy.special import zeta  # lazily: specs and ledger states are read without scipy

    base = error_budget * (1 + len(earlier_comparisons)) ** -_DECAY / float(zeta(_DECAY))
    if used := _count_overlaps(days, earlier_comparisons):
        # Never 0: alpha is a chance, and the smallest number changes no sum.
        return max(base * 2.0 ** -min(used, 1000), float_info.min)
    # Never more than the budget itself, which may have been larger at the comparison before.
    return min(base + _carried_over_alpha(gate_name, earlier_comparisons), error_budget)


def _count_overlaps(days: tuple[date, date], earlier_comparisons: Sequence[EarlierComparison]) -> int:
    """Return the number of earlier comparisons that used one of these days."""
    return sum(earlier.days[0] < days[1] and days[0] < earlier.days[1] for earlier in earlier_comparisons)


def _carried_over_alpha(gate_name: str, earlier_comparisons: Sequence[EarlierComparison]) -> float:
    """Return what the comparison before spent, if the gate passed there on days that were new then."""
    if not earlier_comparisons:
        return 0.0
    *earlier, last = earlier_comparisons
    alpha = next((alpha for gate, alpha, passed in last.spending if gate == gate_name and passed), 0.0)
    return 0.0 if alpha and _count_overlaps(last.days, earlier) else alpha
