"""Gates: what a candidate must show on held-out rows before it may replace the champion.

>>> from datetime import date
>>> from evergreen.gates import AgainstChampion, Evidence, Threshold, judge
>>> gates = (Threshold(metric="auc", at_least=0.6), AgainstChampion(metric="log_loss", must_be="better"))
>>> week = (date(2013, 3, 1), date(2013, 3, 8))
>>> evidence = Evidence(
...     label=[0, 1] * 100, candidate=[0.2, 0.7, 0.6, 0.9] * 50, champion=[0.5, 0.6] * 100, days=week
... )
>>> verdict = judge(gates, evidence)
>>> verdict.promote, verdict.reason
(True, 'all 2 gates passed: auc_threshold, log_loss_against_champion')

Importing this package loads pydantic only, so that a model's spec can list gates while Airflow parses
DAGs; numpy is loaded by the first call of `judge`.
"""

from evergreen.gates.alpha_spending import Comparison
from evergreen.gates.evidence import Evidence, Missing, NoChampion, OnlineSample, Signature
from evergreen.gates.judge import judge
from evergreen.gates.verdict import Finding, Part, Record, Verdict, decide
from evergreen.spec.gates import (
    AgainstChampion,
    Baseline,
    BySlice,
    Fairness,
    Gate,
    OnlineEqualsOffline,
    Own,
    PredictionDrift,
    SameSignature,
    Serving,
    Threshold,
)

__all__ = [
    "AgainstChampion",
    "Baseline",
    "BySlice",
    "Comparison",
    "Evidence",
    "Fairness",
    "Finding",
    "Gate",
    "Missing",
    "NoChampion",
    "OnlineEqualsOffline",
    "OnlineSample",
    "Own",
    "Part",
    "PredictionDrift",
    "Record",
    "SameSignature",
    "Serving",
    "Signature",
    "Threshold",
    "Verdict",
    "decide",
    "judge",
]
