"""What the gates of a model need: evidence besides labels and predictions, and the code that judges it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evergreen.lake import fingerprints
from evergreen.spec.gates import (
    BaselineGate,
    BySliceGate,
    CustomGate,
    FairnessGate,
    Gate,
    MetricGate,
    OnlineEqualsOfflineGate,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
)
from evergreen.spec.model import ModelSpec

# What serving a model cost, what the online store held, and what a request held is not stored: it is of its day.
_GATES_OF_THE_DAY = (ServingGate, SignatureGate, OnlineEqualsOfflineGate, PredictionDriftGate)


def _gate_columns(gate: Gate) -> tuple[str, ...]:
    """Return the columns of the holdout that a function of the model folder asks for."""
    return gate.columns if isinstance(gate, MetricGate | CustomGate) else ()


@dataclass(frozen=True)
class EvidenceRequirements:
    """The fields of `evergreen.gates.Evidence` to fill. A custom gate or metric adds columns only."""

    clusters: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    recent_predictions: bool = False
    serving_costs: bool = False
    input_signature: bool = False
    online_sample_size: int = 0
    """How many entities to sample; 0 for no sample."""

    @classmethod
    def from_gates(cls, gates: Sequence[Gate], clusters: Sequence[str]) -> EvidenceRequirements:
        """Return what these gates need, each item once, with rows in the `clusters` of the spec."""
        return cls(
            clusters=tuple(clusters),
            groups=tuple(sorted({gate.group_by for gate in gates if isinstance(gate, BySliceGate | FairnessGate)})),
            baselines=tuple(sorted({gate.baseline for gate in gates if isinstance(gate, BaselineGate)})),
            columns=tuple(sorted({name for gate in gates for name in _gate_columns(gate)})),
            recent_predictions=any(isinstance(gate, PredictionDriftGate) for gate in gates),
            serving_costs=any(isinstance(gate, ServingGate) for gate in gates),
            input_signature=any(isinstance(gate, SignatureGate) for gate in gates),
            online_sample_size=max(
                (gate.sample_size for gate in gates if isinstance(gate, OnlineEqualsOfflineGate)), default=0
            ),
        )


def backtest_gates(model: ModelSpec) -> tuple[tuple[Gate, ...], tuple[Gate, ...]]:
    """Return the gates of `model` that a backtest can compute for past dates, and those that it cannot.

    A custom gate is computed: its function receives labels, scores, groups, baselines and its columns.
    """
    excluded = tuple(gate for gate in model.gates if isinstance(gate, _GATES_OF_THE_DAY))
    return tuple(gate for gate in model.gates if gate not in excluded), excluded


def first_metric_gate(model: ModelSpec) -> MetricGate | None:
    """Return the gate whose metric stands for a model: the first one with a metric of predictions and labels."""
    gates = (gate for gate in model.gates if isinstance(gate, MetricGate) and gate.metric != "positive_rate")
    return next(gates, None)


def verdict_code(model: ModelSpec) -> dict[str, str]:
    """Return what a verdict depends on besides evidence and specs: the gates, and the functions that they name.

    A module that is missing or broken is left out: its gate reports it.
    """
    code = fingerprints.code_of(("evergreen.gates", "evergreen.spec.gates"), ("numpy", "scipy"))
    functions = {getattr(gate, field, "") for gate in model.gates for field in ("metric", "function")}
    for module in sorted({name.partition(":")[0] for name in functions if ":" in name}):
        try:
            code |= fingerprints.code_of((module,), (), model.code_packages)
        except (ModuleNotFoundError, SyntaxError):
            continue
    return code
