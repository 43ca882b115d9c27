"""What ended an attempt, and what follows from it."""

from __future__ import annotations

import errno

import pyarrow as pa
import pytest

from evergreen.errors import TrainingDataError, TrainingError
from evergreen.training.outcome import (
    AttemptResult,
    CodeMismatchError,
    Outcome,
    RetryableTrainingError,
    TrainingPreempted,
)

pytestmark = pytest.mark.unit


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's is."""


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0, Outcome.SUCCEEDED),
        (1, Outcome.UNKNOWN),
        (2, Outcome.UNKNOWN),
        (65, Outcome.BAD_DATA),
        (70, Outcome.BAD_CODE),
        (71, Outcome.OUT_OF_MEMORY),
        (75, Outcome.PREEMPTED),
        (143, Outcome.PREEMPTED),
        (-15, Outcome.PREEMPTED),
        (137, Outcome.UNKNOWN),
        (-9, Outcome.UNKNOWN),
    ],
)
def test_an_exit_code_tells_the_outcome(code: int, outcome: Outcome) -> None:
    assert Outcome.from_exit_code(code) is outcome


@pytest.mark.parametrize("outcome", Outcome)
def test_an_outcome_and_its_exit_code_are_one_to_one(outcome: Outcome) -> None:
    assert Outcome.from_exit_code(outcome.exit_code) is outcome


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (TrainingPreempted("left after step 3"), Outcome.PREEMPTED, "left after step 3"),
        (CodeMismatchError("other code"), Outcome.BAD_CODE, "other code"),
        (TrainingDataError("no rows"), Outcome.BAD_DATA, "no rows"),
        (pa.ArrowInvalid("not a Parquet file"), Outcome.BAD_DATA, "training data cannot be read"),
        (MemoryError(), Outcome.OUT_OF_MEMORY, "raise resources.memory_gib"),
        (OutOfMemoryError("tried to allocate"), Outcome.OUT_OF_MEMORY, "raise resources.memory_gib"),
        (RuntimeError("CUDA error: out of memory"), Outcome.OUT_OF_MEMORY, "raise resources.memory_gib"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            Outcome.UNKNOWN,
            "no space is left for /data/x",
        ),
        (ConnectionResetError("reset by peer"), Outcome.UNKNOWN, "reset by peer"),
        (RuntimeError("NCCL error"), Outcome.UNKNOWN, "NCCL"),
        (TimeoutError("too long"), Outcome.UNKNOWN, "too long"),
        (TypeError("fit() takes 2"), Outcome.BAD_CODE, "TypeError: fit"),
        (ModuleNotFoundError("No module named 'torch'"), Outcome.BAD_CODE, "torch"),
        (KeyError("rounds"), Outcome.BAD_CODE, "KeyError: 'rounds'"),
        (ValueError(""), Outcome.BAD_CODE, "ValueError"),
    ],
)
def test_an_error_tells_the_outcome(error: BaseException, outcome: Outcome, said: str) -> None:
    found, sentence = Outcome.from_error(error)
    assert found is outcome
    assert said in sentence
    assert "\n" not in sentence


def test_no_trainer_takes_a_preemption_for_an_error() -> None:
    assert not issubclass(TrainingPreempted, Exception)


def test_a_preempted_attempt_is_followed_by_another_until_there_were_too_many() -> None:
    ended = AttemptResult(Outcome.PREEMPTED, "the node was drained")
    ended.raise_unless_resumable("m", 0, max_preemptions=2)
    ended.raise_unless_resumable("m", 1, max_preemptions=2)
    with pytest.raises(TrainingError, match="preempted 3 times, .* allows 2; lately: the node was drained"):
        ended.raise_unless_resumable("m", 2, max_preemptions=2)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Outcome.UNKNOWN, RetryableTrainingError),
        (Outcome.BAD_DATA, TrainingError),
        (Outcome.BAD_CODE, TrainingError),
        (Outcome.OUT_OF_MEMORY, TrainingError),
        (Outcome.BAD_CONFIG, TrainingError),
    ],
)
def test_what_will_happen_again_is_not_tried_again(outcome: Outcome, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"ended as {outcome.name.lower().replace('_', ' ')}: why"):
        AttemptResult(outcome, "why").raise_unless_resumable("m", 0, max_preemptions=9)
