"""Whether a model fell since it was deployed, and how sure a mean over periods is. Both by the gates' bootstrap."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from evergreen.gates import metrics, validation
from evergreen.gates.bootstrap import resampled, seed
from evergreen.gates.metrics import Floats
from evergreen.spec.gates import Measured

CONFIDENCE = 0.95
RESAMPLES = 500  # leaves 25 beyond the bound; a walk may ask for as many tests as it has dates


@dataclass(frozen=True)
class Fall:
    """A model's metric on its own holdout (`then`) and now; `change` is positive where it got better.

    `at_most` is the upper bound of the change at 95 % confidence, None where it was not needed or does not exist.
    """

    then: float
    now: float
    change: float
    at_most: float | None

    @property
    def significant(self) -> bool:
        return self.at_most is not None and self.at_most < 0


def measure(gate: Measured, label: Floats, score: Floats) -> float | None:
    """The metric that `gate` is about, or None where it does not exist: no rows, or rows of one class only."""
    if label.size == 0 or (gate.scale.of == "classes" and label.min() == label.max()):
        return None
    found = metrics.value(metrics.measure(gate), *validation.in_canonical_order([label, score]))
    return found if isfinite(found) else None


def fall(gate: Measured, then: tuple[Floats, Floats], now: tuple[Floats, Floats]) -> Fall | None:
    """Compare a model with itself, by the metric of `gate`: labels and scores (n,) at deployment, (m,) of late.

    The two-sample bootstrap (Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 8): rows of
    either sample are drawn with replacement, independently, and the 95 % percentile (chapter 13) of the changes
    is the one-sided upper bound. It counts the luck of drawing rows, not that of drawing weeks: weeks that
    differ for other reasons than the model's age trigger it too. A metric that did not fall at all is not tested.
    None if the metric does not exist on either side.
    """
    import numpy as np

    before, after = measure(gate, *then), measure(gate, *now)
    if before is None or after is None:
        return None
    sign = 1 if gate.scale.higher_is_better else -1
    change = sign * (after - before)
    if change >= 0:
        return Fall(before, after, change, None)
    draws = _drawn(gate, *then), _drawn(gate, *now)
    bound = float(np.quantile(sign * (draws[1] - draws[0]), CONFIDENCE))
    return Fall(before, after, change, None if np.isnan(bound) else bound)


def _drawn(gate: Measured, label: Floats, score: Floats) -> Floats:
    """The metric in each resample of the rows: (RESAMPLES,)."""
    import numpy as np

    label, score = validation.in_canonical_order([label, score])
    weights = resampled(label.size, RESAMPLES, seed(label, score))
    metric = metrics.measure(gate)
    return np.concatenate([metric(label, score, weight) for weight in weights])


def mean_with_bounds(values: Floats) -> tuple[float, float, float]:
    """The mean of (n,), and its one-sided 95 % lower and upper bounds: periods drawn with replacement.

    Takes periods as independent; where they are alike in a row, the bounds are too narrow.
    """
    import numpy as np

    draws = [(counts * values).sum(axis=1) for counts in resampled(values.size, RESAMPLES, seed(values))]
    low, high = np.quantile(np.concatenate(draws) / values.size, [1 - CONFIDENCE, CONFIDENCE])
    return float(values.mean()), float(low), float(high)
