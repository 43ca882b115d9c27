"""Gates: what a candidate must show on held-out rows before it may replace the champion.

>>> from evergreen.gates import Evidence, NotWorseThanChampion, Threshold, judge
>>> gates = (Threshold(metric="auc", at_least=0.6), NotWorseThanChampion(metric="log_loss", margin=0.01))
>>> evidence = Evidence(label=[0, 1] * 100, candidate=[0.2, 0.7, 0.6, 0.9] * 50, champion=[0.5, 0.6] * 100)
>>> verdict = judge(gates, evidence)
>>> verdict.promote, verdict.reason
(True, 'all 2 gates passed: auc_threshold, log_loss_not_worse_than_champion')

Importing this package loads pydantic only, so that a model's spec can list gates while Airflow parses
DAGs; numpy is loaded by the first call of `judge`.
"""

from evergreen.gates.evidence import Evidence, NoChampion, NotComparable
from evergreen.gates.judging import judge
from evergreen.gates.spec import Gate, NotWorseThanChampion, Threshold
from evergreen.gates.verdict import Record, Verdict, decide

__all__ = [
    "Evidence",
    "Gate",
    "NoChampion",
    "NotComparable",
    "NotWorseThanChampion",
    "Record",
    "Threshold",
    "Verdict",
    "decide",
    "judge",
]
