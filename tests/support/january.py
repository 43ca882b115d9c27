"""A model of the flights that 17 days are enough for, and candidates of it."""

from __future__ import annotations

from collections.abc import Sequence

from evergreen.feature_store import training_sets
from evergreen.gates import AgainstChampionGate, ThresholdGate
from evergreen.lake.datasets import Manifest
from evergreen.periods import Calendar, Duration
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.training.backends import process
from evergreen.window import RunReason, Window

SPEC = loader.load_spec("flight_delay")
JANUARY_MODEL = SPEC.model_copy(
    update={
        "gates": (
            ThresholdGate(metric="auc", at_least=0.5),
            AgainstChampionGate(metric="auc", must_be="not_worse", margin=0.2),
        ),
        "holdout": Duration(8, "d"),  # of 17: as many as weigh like five
        "parameters": {**SPEC.parameters, "rounds": 12},
        "monitor": None,  # these days decide
    }
)


def train_candidate(
    end: int, model: ModelSpec = JANUARY_MODEL, reason: RunReason = RunReason.MANUAL, columns: Sequence[str] = ()
) -> tuple[Manifest, Manifest]:
    """Return the training set of January until day `end`, and a candidate; by default of all its features."""
    window = Window.from_range("2013-01-01", f"2013-01-{end:02d}", reason, Calendar("1d", "America/New_York"))
    examples = training_sets.build_training_set(model, window)
    source = training_sets.training_set_dataset(model)
    features = tuple(columns) or training_sets.model_input_columns(model)
    return examples, process.train_in_process(model, examples, source, features)
