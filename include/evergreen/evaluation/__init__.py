"""Evaluation: measure once what the gates of a model need, and publish it as one partition.

`collect_evidence` scores the candidate and the champion on the same holdout rows, batch by batch, and measures what
else a gate of the spec needs. `load_evidence` reads it back, today or in a year, for `evergreen.gates.judge_evidence`:
rows in memory, or columns that gates read in batches, where the rows are many.

    evaluations/flight_delay/                    under the lake's root: a dataset
        scores                                   a row per holdout row: label, predictions, clusters, groups, baselines
        metadata                                 days, champion, what is missing, with the reason, and whether gates
                                                 get all rows in memory
        champion_inputs, candidate_inputs        a model's own, where the examples do not have them as it learned them
        recent_predictions, serving_costs,
        input_signature, online_sample           if a gate needs them

An evaluation is never replaced: its partition is named by its fingerprint. Problems outside the lake (a registry or an
online store that is out of date) are part of that fingerprint, so that a step that runs again measures again.
"""

from evergreen.evaluation.collect import (
    collect_evidence,
    collect_look_evidence,
    evaluation_dataset,
    evidence_code,
    load_evidence,
)
from evergreen.evaluation.requirements import backtest_gates, verdict_code
from evergreen.evaluation.rows import historical_evidence
from evergreen.scoring.predictions import Champion, score_candidate, score_table

__all__ = [
    "Champion",
    "backtest_gates",
    "collect_evidence",
    "collect_look_evidence",
    "evaluation_dataset",
    "evidence_code",
    "historical_evidence",
    "load_evidence",
    "score_candidate",
    "score_table",
    "verdict_code",
]
