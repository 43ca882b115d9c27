"""How much chance of a false promotion each comparison with a champion may spend, so that a life's sum is bounded.

A model is compared every week for years. Were each comparison allowed an error of 5 %, a worse model would be
promoted several times a year. So `1 - confidence` of a gate is a budget for the model's whole life:

- The k-th comparison of the model is given γₖ = k^(-1.6) / ζ(1.6) of it; the shares add up to 1 over any number
  of comparisons (alpha-spending, in the form of Tian and Ramdas 2021, Statistical Methods in Medical Research
  30:976-993, "Online control of the familywise error rate").
- A comparison that passed was not false, or the budget is already broken: what it had is carried over to the next
  one (online fallback, the same paper, section 3). So a model that improves keeps most of its budget.
- Days of the holdout that an earlier comparison used may have shaped this candidate, through the verdicts that
  followed. One verdict tells one bit, so after j of them there are 2^j candidates that it may have led to, and each
  is given 2^(-j) of the share (the union bound over an adaptive analysis: Dwork et al. 2015, Science 349:636-638,
  "The reusable holdout", supplement). Nothing is carried into, or out of, such a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from sys import float_info

_DECAY = 1.6


@dataclass(frozen=True)
class EarlierComparison:
    """One earlier verdict that spent confidence: on which days, and by gate the level spent and whether it passed."""

    days: tuple[date, date]
    """first ≤ day < end"""
    spending: tuple[tuple[str, float, bool], ...]
    """name, level, passed"""


def next_alpha(
    error_budget: float,
    gate_name: str,
    days: tuple[date, date],
    earlier_comparisons: Sequence[EarlierComparison],
) -> float:
    """What the gate may spend on its next comparison, in (0, 1): the chance that a false promotion slips through it.

    `error` is the gate's budget for life, 1 - confidence; `days` those of the holdout, first ≤ day < end; `past` all
    earlier comparisons of the model, oldest first. Each gate has a budget of its own.
    """
    from scipy.special import zeta  # here, because specs and states are read without scipy

    base = error_budget * (1 + len(earlier_comparisons)) ** -_DECAY / float(zeta(_DECAY))
    if used := _count_overlaps(days, earlier_comparisons):
        # Not 0, however often: a level is a chance, and the least there is changes no sum.
        return max(base * 2.0 ** -min(used, 1000), float_info.min)
    # Never more than the budget itself, which may have been larger when the comparison before had its share.
    return min(base + _carried_over_alpha(gate_name, earlier_comparisons), error_budget)


def _count_overlaps(days: tuple[date, date], earlier_comparisons: Sequence[EarlierComparison]) -> int:
    """How many earlier comparisons looked at one of these days."""
    return sum(earlier.days[0] < days[1] and days[0] < earlier.days[1] for earlier in earlier_comparisons)


def _carried_over_alpha(gate_name: str, earlier_comparisons: Sequence[EarlierComparison]) -> float:
    """What the comparison before had, if the gate passed there on days that were new then."""
    if not earlier_comparisons:
        return 0.0
    had = next(
        (spent for name, spent, passed in earlier_comparisons[-1].spending if name == gate_name and passed),
        0.0,
    )
    return 0.0 if had and _count_overlaps(earlier_comparisons[-1].days, earlier_comparisons[:-1]) else had
