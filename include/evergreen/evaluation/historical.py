"""Evidence about a date long past, for backtests: what follows from rows and their scores.

What serving a model cost, what the online store held, and what serving gave, was of its day and is gone.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
from numpy.typing import ArrayLike

from evergreen.evaluation import rows
from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.spec.gates import (
    Gate,
    OnlineEqualsOfflineGate,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
)
from evergreen.spec.model import ModelSpec


def backtest_gates(model: ModelSpec) -> tuple[tuple[Gate, ...], tuple[Gate, ...]]:
    """The gates of `model` that can be held against past dates, and those that are left out of a backtest.

    A gate of one's own is held against them: it is shown labels, scores, groups and baselines.
    """
    present = (ServingGate, SignatureGate, OnlineEqualsOfflineGate, PredictionDriftGate)
    left_out = tuple(gate for gate in model.gates if isinstance(gate, present))
    return tuple(gate for gate in model.gates if gate not in left_out), left_out


def historical_evidence(
    model: ModelSpec,
    holdout: pa.Table,
    train_file: Path,
    candidate: ArrayLike,
    champion: ArrayLike | NoChampion | MissingEvidence,
    days: tuple[date, date],
) -> Evidence:
    """What `backtest_gates` ask for: scores (n,) of the rows of `holdout`, of the days first ≤ day < end.

    `train` is the Parquet file that the candidate learned from.
    """
    asked = EvidenceRequirements.from_gates(model.gates)
    return Evidence(
        label=holdout["label"].to_numpy(),
        candidate=candidate,
        champion=champion,
        days=days,
        groups=rows.compute_groups(holdout, asked.groups),
        baselines=rows.compute_baselines(holdout, train_file, asked.baselines),
    )
