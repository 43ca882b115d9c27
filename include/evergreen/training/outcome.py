"""How an attempt at a training job ended: its exit code, and whether another attempt could help."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import Enum
from typing import Self

from evergreen.errors import EvergreenError, TrainingError, first_line
from evergreen.training.volumes import find_out_of_space

_LANGUAGE_ERRORS = (AttributeError, ImportError, NameError, NotImplementedError, SyntaxError, TypeError)
_CODE_ERRORS = (*_LANGUAGE_ERRORS, ArithmeticError, AssertionError, LookupError, ValueError)
_OUT_OF_MEMORY = re.compile("out of memory|bad_alloc", re.IGNORECASE)  # of PyTorch and XGBoost: not MemoryErrors


class RetryableTrainingError(Exception):
    """Training failed for a reason that may pass. Nothing is lost: a retry resumes from the last checkpoint."""


class TrainingPreempted(BaseException):
    """The attempt was asked to stop, and left a checkpoint for the next one.

    A BaseException, like KeyboardInterrupt, so that no `except Exception` of a trainer or a library catches it.
    """


class CodeMismatchError(Exception):
    """The code or libraries of this machine differ from those that the job was planned with."""


class TrainerOutputError(Exception):
    """What `fit` has left in its folder, or returned, is no model with metrics. All faults are named."""


class Outcome(Enum):
    """Values are exit codes, those of sysexits.h where it has one. UNKNOWN is also what Python exits with."""

    SUCCEEDED = 0
    UNKNOWN = 1
    BAD_DATA = 65
    BAD_CODE = 70
    OUT_OF_MEMORY = 71
    PREEMPTED = 75
    BAD_CONFIG = 78
    """The attempt could not start as configured: the image is missing, a permission, or the pod is invalid."""

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ")

    @property
    def is_retryable(self) -> bool:
        """Whether another attempt at the same job could end otherwise."""
        return self in (Outcome.PREEMPTED, Outcome.UNKNOWN)

    @classmethod
    def from_exit_code(cls, exit_code: int) -> Outcome:
        """Return the outcome for a container's exit code or a process's return code; SIGTERM is a preemption."""
        if exit_code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            return cls.PREEMPTED
        return cls(exit_code) if exit_code in {outcome.value for outcome in cls} else cls.UNKNOWN


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended, and why, in a sentence that names the fix."""

    outcome: Outcome
    message: str

    @classmethod
    def from_error(cls, error: BaseException) -> Self:
        """Return the result for an exception of a trainer.

        Errors that may come from the machine, the network or a driver are UNKNOWN, and so retried. Errors that the
        same code would raise again for the same data are not.
        """
        name, text = type(error).__name__, str(error)
        summary = f"{name}: {first_line(error)}" if text.strip() else name
        if isinstance(error, TrainingPreempted):
            return cls(Outcome.PREEMPTED, text)
        if isinstance(error, CodeMismatchError | TrainerOutputError):
            return cls(Outcome.BAD_CODE, text)
        if full := find_out_of_space(error):
            return cls(Outcome.UNKNOWN if full.is_retryable else Outcome.OUT_OF_MEMORY, str(full))
        if isinstance(error, EvergreenError):
            return cls(Outcome.BAD_DATA, text)
        if isinstance(error, MemoryError) or name == "OutOfMemoryError" or _OUT_OF_MEMORY.search(text):
            return cls(Outcome.OUT_OF_MEMORY, f"{summary}: raise resources.memory_gib, or make the batches smaller")
        if type(error).__module__.partition(".")[0] == "pyarrow":
            return cls(Outcome.BAD_DATA, f"{summary}: the training data cannot be read")
        return cls(Outcome.BAD_CODE if isinstance(error, _CODE_ERRORS) else Outcome.UNKNOWN, summary)

    def raise_unless_resumable(self, model_name: str, earlier_preemptions: int, max_preemptions: int) -> None:
        """Return if another attempt should start at once: this one was preempted, and not too many were before it.

        Raises:
            RetryableTrainingError: it failed for a reason that may pass.
            TrainingError: another attempt would end the same way, or too many were preempted.
        """
        if self.outcome is Outcome.PREEMPTED:
            if earlier_preemptions < max_preemptions:
                return
            raise TrainingError(
                f"training {model_name} was preempted {earlier_preemptions + 1} times, and resources.max_preemptions "
                f"allows {max_preemptions}; last reason: {self.message}. Nothing is lost: clear the task, and it goes "
                "on from its last checkpoint; or set resources.spot=False"
            )
        text = f"training {model_name} ended as {self.outcome.label}: {self.message}"
        raise RetryableTrainingError(text) if self.outcome.is_retryable else TrainingError(text)
