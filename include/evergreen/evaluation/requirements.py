"""What the gates of a model need to be shown, besides labels and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evergreen.spec.gates import (
    Baseline,
    BySlice,
    Fairness,
    Gate,
    OnlineEqualsOffline,
    PredictionDrift,
    SameSignature,
    Serving,
)


@dataclass(frozen=True)
class Asked:
    """Each as `evergreen.gates.Evidence` calls it. A gate of one's own asks for nothing: it takes what there is."""

    groups: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    recent: bool = False
    serving: bool = False
    signature: bool = False
    online: int = 0
    """How many entities to sample; 0 for no sample."""

    @classmethod
    def by(cls, gates: Sequence[Gate]) -> Asked:
        """What these gates ask for, each thing once."""
        return cls(
            groups=tuple(sorted({gate.by for gate in gates if isinstance(gate, BySlice | Fairness)})),
            baselines=tuple(sorted({gate.against for gate in gates if isinstance(gate, Baseline)})),
            recent=any(isinstance(gate, PredictionDrift) for gate in gates),
            serving=any(isinstance(gate, Serving) for gate in gates),
            signature=any(isinstance(gate, SameSignature) for gate in gates),
            online=max((gate.entities for gate in gates if isinstance(gate, OnlineEqualsOffline)), default=0),
        )
