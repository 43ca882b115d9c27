"""Gates: what a candidate must show on held-out rows before it may replace the champion.

>>> from datetime import date
>>> from evergreen.gates import AgainstChampionGate, Evidence, ThresholdGate, judge_evidence
>>> gates = (ThresholdGate(metric="auc", at_least=0.6), AgainstChampionGate(metric="log_loss", must_be="better"))
>>> week = [date(2013, 3, day) for day in range(1, 8)]
>>> evidence = Evidence(
...     label=[0, 1] * 350,
...     candidate=[0.2, 0.7, 0.6, 0.9] * 150 + [0.3, 0.8] * 50,
...     champion=[0.5, 0.6] * 350,
...     days=(week[0], date(2013, 3, 8)),
...     clusters={"day": [str(day) for day in week for _ in range(100)]},
... )
>>> verdict = judge_evidence(gates, evidence)
>>> verdict.promote, verdict.reason
(True, 'all 2 gates passed: auc_threshold, log_loss_against_champion')

Importing this package loads pydantic only, so that a model's spec can list gates while Airflow parses
DAGs; numpy is loaded by the first call of `judge_evidence`.
"""

from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.gates.evidence import (
    Evidence,
    InputSignature,
    MetricRows,
    MissingEvidence,
    NoChampion,
    OnlineSample,
    unlabelled_share,
)
from evergreen.gates.verdict import (
    CustomGateResult,
    GateResult,
    Look,
    SliceResult,
    Verdict,
    decide_verdict,
    judge_evidence,
    judge_next_look,
)
from evergreen.spec.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    ChurnGate,
    CustomGate,
    FairnessGate,
    Gate,
    LabelledGate,
    OnlineEqualsOfflineGate,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
    ThresholdGate,
)

__all__ = [
    "AgainstChampionGate",
    "BaselineGate",
    "BySliceGate",
    "ChurnGate",
    "CustomGate",
    "CustomGateResult",
    "EarlierComparison",
    "Evidence",
    "FairnessGate",
    "Gate",
    "GateResult",
    "InputSignature",
    "LabelledGate",
    "Look",
    "MetricRows",
    "MissingEvidence",
    "NoChampion",
    "OnlineEqualsOfflineGate",
    "OnlineSample",
    "PredictionDriftGate",
    "ServingGate",
    "SignatureGate",
    "SliceResult",
    "ThresholdGate",
    "Verdict",
    "decide_verdict",
    "judge_evidence",
    "judge_next_look",
    "unlabelled_share",
]
