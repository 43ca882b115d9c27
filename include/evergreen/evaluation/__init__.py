"""Evaluation: what the gates of a model ask for is measured once, and published as one partition.

`evaluate` scores the candidate and the champion on the same holdout rows, and measures whatever else a gate of
the spec needs, and nothing that none needs. `evidence` reads it back, today or in a year, for `gates.judge`.

    evaluations/flight_delay/                    under the lake's root: a dataset
        scores                                   a row per holdout row: label, predictions, groups, baselines
        about.json                               days, champion, and what is missing, with the reason
        recent_predictions, serving_costs,
        input_signature, online_sample           where a gate asks for them

An evaluation is never replaced: its partition carries its fingerprint. What could not be measured, or was found
wrong outside of the lake, is in that fingerprint: a step that runs again looks again.
"""

from evergreen.evaluation.collect import collect_evidence, evaluation_dataset, load_evidence
from evergreen.evaluation.historical import backtest_gates, historical_evidence
from evergreen.evaluation.judging import judging_code
from evergreen.scoring.predictions import Champion, score_candidate, score_table

__all__ = [
    "Champion",
    "backtest_gates",
    "collect_evidence",
    "evaluation_dataset",
    "historical_evidence",
    "judging_code",
    "load_evidence",
    "score_candidate",
    "score_table",
]
