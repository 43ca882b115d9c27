"""What the gates of a model need to be shown, besides labels and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evergreen.spec.gates import (
    BaselineGate,
    BySliceGate,
    FairnessGate,
    Gate,
    OnlineEqualsOfflineGate,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
)


@dataclass(frozen=True)
class EvidenceRequirements:
    """Each as `evergreen.gates.Evidence` calls it. A gate of one's own asks for nothing: it takes what there is."""

    groups: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    recent_predictions: bool = False
    serving_costs: bool = False
    input_signature: bool = False
    online_sample_size: int = 0
    """How many entities to sample; 0 for no sample."""

    @classmethod
    def from_gates(cls, gates: Sequence[Gate]) -> EvidenceRequirements:
        """What these gates ask for, each thing once."""
        return cls(
            groups=tuple(sorted({gate.group_by for gate in gates if isinstance(gate, BySliceGate | FairnessGate)})),
            baselines=tuple(sorted({gate.baseline for gate in gates if isinstance(gate, BaselineGate)})),
            recent_predictions=any(isinstance(gate, PredictionDriftGate) for gate in gates),
            serving_costs=any(isinstance(gate, ServingGate) for gate in gates),
            input_signature=any(isinstance(gate, SignatureGate) for gate in gates),
            online_sample_size=max(
                (gate.sample_size for gate in gates if isinstance(gate, OnlineEqualsOfflineGate)), default=0
            ),
        )
