"""The chance of a false promotion that each comparison with a champion may spend, bounded over the model's life.

A model is compared every week for years. With an error of 5 % in each comparison, a worse model would be promoted
several times a year. So `1 - confidence` of a gate is a budget for the model's whole life:

- The k-th comparison of the model receives γₖ = k^(-1.6) / ζ(1.6) of it; the shares add up to 1 over any number
  of comparisons (alpha-spending, in the form of Tian and Ramdas 2021, Statistical Methods in Medical Research
  30:976-993, "Online control of the familywise error rate").
- `lifetime`, the chance that a model that falls short is ever promoted: a comparison that passed was not false, or the
  budget is already exceeded, so its share is carried over to the next one (online fallback, the same paper, section 3).
  So a model that improves keeps most of its budget.
- `rate`, the expected share of promotions that fall short: the share of a comparison is multiplied by 1 + the number of
  promotions before it (e-LOND, Xu and Ramdas 2024, AISTATS, with the e-value 1/α of a comparison that passes at α, and
  0 of one that fails). A comparison may have many looks: its e-value is that of all of them.
- Holdout days that an earlier comparison used may have shaped this candidate, through the verdicts that followed. A
  verdict is one bit, so after j of them there are 2^j candidates that they may have led to, and each receives 2^(-j)
  of the share (the union bound over an adaptive analysis: Dwork et al. 2015, Science 349:636-638, "The reusable
  holdout", supplement). A comparison with many looks has told more: at which it ended, and how. If n of its looks used
  the days, and the last one decided, the share is divided by 3·4^(n - 1); by 3·4^n if the challenger was withdrawn
  instead. Over all n and the three ways to end (passed, failed, withdrawn), the inverses add up to 1.
- Nothing is carried into, or out of, a comparison on such days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from sys import float_info
from typing import NamedTuple

from evergreen.spec.gates import Guarantee

_DECAY = 1.6


class AlphaSpend(NamedTuple):
    """What one gate spent in a comparison, and whether it passed."""

    gate: str
    alpha: float
    passed: bool


class DayCorrelation(NamedTuple):
    """The correlation of neighbouring days that one gate measured in a comparison, on so many days."""

    gate: str
    days: int
    value: float


@dataclass(frozen=True)
class EarlierComparison:
    """One earlier comparison that spent alpha, on the days first ≤ day < end.

    Attributes:
        days: of all of its evidence, until its last look.
        spending: by gate.
        promoted: whether its verdict allowed a promotion.
        look_ends: the day after the evidence of each look, in order; empty if one look was to decide.
        is_decided: whether its last look passed or failed; False if the challenger was withdrawn before another one.
        day_correlations: by gate, as of the last look.
    """

    days: tuple[date, date]
    spending: tuple[AlphaSpend, ...]
    promoted: bool = False
    look_ends: tuple[date, ...] = ()
    is_decided: bool = True
    day_correlations: tuple[DayCorrelation, ...] = ()


def next_alpha(
    error_budget: float,
    gate_name: str,
    days: tuple[date, date],
    earlier_comparisons: Sequence[EarlierComparison],
    guarantee: Guarantee = "lifetime",
) -> float:
    """Return the chance of a false promotion, in (0, 1), that the gate may spend on its next comparison.

    `error_budget` is 1 - confidence of the gate; `days` are those of the holdout, first ≤ day < end;
    `earlier_comparisons` are all of the model that have ended, oldest first. Each gate has a budget of its own. A
    comparison that has several looks keeps the alpha of its first one.
    """
    from scipy.special import zeta  # lazily: specs and ledger states are read without scipy

    alpha = error_budget * (1 + len(earlier_comparisons)) ** -_DECAY / float(zeta(_DECAY))
    if guarantee == "rate":
        alpha *= 1 + sum(earlier.promoted for earlier in earlier_comparisons)
    discount = _discount_used_days(days, earlier_comparisons)
    if guarantee == "lifetime" and discount == 1:
        alpha += _carried_over_alpha(gate_name, earlier_comparisons)
    # Never more than the budget itself, which may have been larger at the comparison before. Never 0: alpha is a
    # chance, and the smallest number changes no sum.
    return max(min(alpha * discount, error_budget), float_info.min)


def earlier_day_correlations(
    gate_name: str, earlier_comparisons: Sequence[EarlierComparison]
) -> tuple[DayCorrelation, ...]:
    """Return those that the gate measured."""
    return tuple(
        measured
        for earlier in earlier_comparisons
        for measured in earlier.day_correlations
        if measured.gate == gate_name
    )


def _discount_used_days(days: tuple[date, date], earlier_comparisons: Sequence[EarlierComparison]) -> float:
    """Return the share that remains of alpha, in [0, 1]: 1 if no earlier comparison used one of these days."""
    discount = 1.0
    for earlier in earlier_comparisons:
        if earlier.days[0] < days[1] and days[0] < earlier.days[1]:
            looks = sum(end > days[0] for end in earlier.look_ends)
            discount /= 3 * 4.0 ** (looks - earlier.is_decided) if looks else 2
    return discount


def _carried_over_alpha(gate_name: str, earlier_comparisons: Sequence[EarlierComparison]) -> float:
    """Return what the comparison before spent, if the gate passed there on days that were new then."""
    if not earlier_comparisons:
        return 0.0
    *earlier, last = earlier_comparisons
    alpha = next((alpha for gate, alpha, passed in last.spending if gate == gate_name and passed), 0.0)
    return alpha if alpha and _discount_used_days(last.days, earlier) == 1 else 0.0
