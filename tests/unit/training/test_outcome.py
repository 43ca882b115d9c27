"""Outcomes of attempts, and whether another attempt follows."""

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
def test_outcome_from_exit_code(code: int, outcome: Outcome) -> None:
    assert Outcome.from_exit_code(code) is outcome


@pytest.mark.parametrize("outcome", Outcome)
def test_outcome_survives_its_exit_code(outcome: Outcome) -> None:
    assert Outcome.from_exit_code(outcome.value) is outcome


@pytest.mark.parametrize(
    ("error", "outcome", "message"),
    [
        (TrainingPreempted("left after step 3"), Outcome.PREEMPTED, "left after step 3"),
        (CodeMismatchError("other code"), Outcome.BAD_CODE, "other code"),
        (TrainingDataError("no rows"), Outcome.BAD_DATA, "no rows"),
        (pa.ArrowInvalid("not a Parquet file"), Outcome.BAD_DATA, "training data cannot be read"),
        (MemoryError(), Outcome.OUT_OF_MEMORY, "raise resources.memory_gib"),
        (OutOfMemoryError("tried to allocate"), Outcome.OUT_OF_MEMORY, "raise resources.memory_gib"),
        (RuntimeError("CUDA error: out of memory"), Outcome.OUT_OF_MEMORY, "raise resources.memory_gib"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), Outcome.UNKNOWN, "no space is left for /data/x"),
        (ConnectionResetError("reset by peer"), Outcome.UNKNOWN, "reset by peer"),
        (RuntimeError("NCCL error"), Outcome.UNKNOWN, "NCCL"),
        (TimeoutError("too long"), Outcome.UNKNOWN, "too long"),
        (TypeError("fit() takes 2"), Outcome.BAD_CODE, "TypeError: fit"),
        (ModuleNotFoundError("No module named 'torch'"), Outcome.BAD_CODE, "torch"),
        (KeyError("rounds"), Outcome.BAD_CODE, "KeyError: 'rounds'"),
        (ValueError(""), Outcome.BAD_CODE, "ValueError"),
    ],
)
def test_result_from_error(error: BaseException, outcome: Outcome, message: str) -> None:
    result = AttemptResult.from_error(error)
    assert result.outcome is outcome
    assert message in result.message
    assert "\n" not in result.message


def test_preemption_is_no_exception() -> None:
    assert not issubclass(TrainingPreempted, Exception)


def test_preemption_is_resumable_until_the_maximum() -> None:
    result = AttemptResult(Outcome.PREEMPTED, "the node was drained")
    result.raise_unless_resumable("m", 0, max_preemptions=2)
    result.raise_unless_resumable("m", 1, max_preemptions=2)
    with pytest.raises(TrainingError, match="preempted 3 times, .* allows 2; last reason: the node was drained"):
        result.raise_unless_resumable("m", 2, max_preemptions=2)


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
def test_only_unknown_failures_are_retryable(outcome: Outcome, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"ended as {outcome.name.lower().replace('_', ' ')}: why"):
        AttemptResult(outcome, "why").raise_unless_resumable("m", 0, max_preemptions=9)
