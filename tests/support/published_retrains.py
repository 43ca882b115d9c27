"""What a run of `tills.retrain` has published, without rows: with inputs as the tasks themselves compute them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import evaluation, ledger
from evergreen.evaluation.collect import _prediction_inputs
from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.feature_store import training_sets
from evergreen.feature_store.declared_inputs import read_declared_inputs
from evergreen.lake import datasets, fingerprints
from evergreen.promotion.challengers import gates_fingerprint
from evergreen.promotion.changed_inputs import RetrainReferences
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.training import candidates
from evergreen.window import RunReason, Window
from support import tills
from support.ledger_events import verdict_event

AS_OF = "2024-01-08"
DAYS = tills.days(7)

TRAIN = """
import json


def fit(job, folder, checkpoints):
    (folder / "model.json").write_text(json.dumps({"rounds": job.parameters["rounds"]}))
    return {}
"""


def publish_retrain(model: ModelSpec) -> RetrainReferences:
    """Publish what a retrain as of `AS_OF` makes by the code as it is now, and record its verdict.

    Definitions are those that are declared: applying them takes seconds, and changes none.
    """
    window = Window.from_range(DAYS[0], AS_OF, RunReason.MANUAL, feature_spec(model).calendar)
    dataset, declared = training_sets.training_set_dataset(model), read_declared_inputs(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_sets, "_view_definitions", lambda _model: dict(declared.views))
        examples = training_sets._training_set_inputs(model, window)
    training_set = publish(dataset, f"as_of={AS_OF}", examples, "train")
    inputs = candidates.candidate_inputs(model, training_set, declared.columns)
    candidate = publish(candidates.candidate_dataset(model), training_set.partition, inputs, "model")
    evidence = {
        "requirements": asdict(EvidenceRequirements.from_gates(model.gates, model.clusters)),
        "code": evaluation.evidence_code(),
        **_prediction_inputs(model),
    }
    measured = publish(evaluation.evaluation_dataset(model), "evaluated", evidence, "scores")
    judging = fingerprints.compute_fingerprint(evaluation.verdict_code(model))
    event = verdict_event(10).model_copy(
        update={"as_of": AS_OF, "fingerprints": {"gates": gates_fingerprint(model), "judging": judging}}
    )
    entry = ledger.append_decision(model.name, "a run", lambda _state: event)
    return RetrainReferences(training_set.reference, candidate.reference, measured.reference, entry.number)


def publish(dataset: datasets.Dataset, partition: str, inputs: dict[str, Any], name: str) -> datasets.Manifest:
    """Publish one empty table of a partition, made from `inputs`."""
    fingerprint = fingerprints.compute_fingerprint(inputs)
    file = dataset.stage(partition, fingerprint) / f"{name}.parquet"
    pq.write_table(pa.table({"evergreen_row": pa.array([], pa.int64())}), file)
    return dataset.publish(partition, fingerprint, {name: file}, inputs)
