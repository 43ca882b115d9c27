"""What an attempt at a training job ended with: its exit code, and whether another one would help."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum

from evergreen.errors import EvergreenError, TrainingError
from evergreen.training.volumes import find_out_of_space


class RetryableTrainingError(Exception):
    """Training did not succeed for a reason that may pass; nothing is lost, another try goes on from there."""


class TrainingPreempted(BaseException):
    """The attempt was asked to leave, and left its work where the next one finds it.

    Like KeyboardInterrupt, so that no `except Exception` of a trainer or a library takes it for an error.
    """


class CodeMismatchError(Exception):
    """This machine's code or libraries are not those that the job is about."""


class Outcome(Enum):
    """The codes are those of sysexits.h where it has one; what a process may end with by itself is UNKNOWN."""

    SUCCEEDED = 0
    UNKNOWN = 1
    BAD_DATA = 65
    BAD_CODE = 70
    OUT_OF_MEMORY = 71
    PREEMPTED = 75
    BAD_CONFIG = 78
    """The attempt could not begin as asked for: no such image, no permission, a pod that is not valid."""

    @property
    def exit_code(self) -> int:
        return self.value

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ")

    @property
    def is_retryable(self) -> bool:
        """Whether the same attempt may end otherwise when it is made again."""
        return self in (Outcome.PREEMPTED, Outcome.UNKNOWN)

    @classmethod
    def from_exit_code(cls, exit_code: int) -> Outcome:
        """Of a container's exit code or a process's return code; a signal that asked to leave is a preemption."""
        if exit_code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            return cls.PREEMPTED
        try:
            return cls(exit_code)
        except ValueError:
            return cls.UNKNOWN

    @classmethod
    def from_error(cls, error: BaseException) -> tuple[Outcome, str]:
        """Of what stopped a trainer, and why in one sentence.

        Whatever may come from the machine, the network or a driver is UNKNOWN, and so tried again; what the same
        code will run into with the same data is not.
        """
        said = str(error).strip().splitlines()
        sentence = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
        if isinstance(error, TrainingPreempted):
            return cls.PREEMPTED, str(error)
        if isinstance(error, CodeMismatchError):
            return cls.BAD_CODE, str(error)
        if out_of_space := find_out_of_space(error):
            return cls.UNKNOWN if out_of_space.is_retryable else cls.OUT_OF_MEMORY, str(out_of_space)
        if isinstance(error, EvergreenError):
            return cls.BAD_DATA, str(error)
        if isinstance(error, MemoryError) or _is_out_of_memory(type(error).__name__, str(error)):
            return cls.OUT_OF_MEMORY, f"{sentence}: raise resources.memory_gib, or make the batches smaller"
        if type(error).__module__.partition(".")[0] == "pyarrow":
            return cls.BAD_DATA, f"{sentence}: the training data cannot be read"
        if isinstance(error, _CODE_ERRORS):
            return cls.BAD_CODE, sentence
        return cls.UNKNOWN, sentence


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended, and why, in a sentence that says what to do about it."""

    outcome: Outcome
    message: str

    def raise_unless_resumable(self, model_name: str, earlier_preemptions: int, max_preemptions: int) -> None:
        """Return if the next attempt is to begin at once: this one was preempted, as were `preemptions` before it.

        Raises:
            TryAgain: it failed for a reason that may pass.
            TrainingError: another attempt would end the same way, or too many were preempted.
        """
        if self.outcome is Outcome.PREEMPTED:
            if earlier_preemptions < max_preemptions:
                return
            raise TrainingError(
                f"training {model_name} was preempted {earlier_preemptions + 1} times, and resources.max_preemptions allows {max_preemptions}; "
                f"lately: {self.message}. Nothing is lost: clear the task, and it goes on from its last checkpoint; "
                "or set resources.spot=False"
            )
        text = f"training {model_name} ended as {self.outcome.label}: {self.message}"
        raise RetryableTrainingError(text) if self.outcome.is_retryable else TrainingError(text)


_CODE_ERRORS = (
    ImportError,
    SyntaxError,
    NameError,
    TypeError,
    AttributeError,
    LookupError,
    ValueError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
)


def _is_out_of_memory(name: str, text: str) -> bool:
    """PyTorch and XGBoost have errors of their own for it, which are not MemoryError."""
    return name == "OutOfMemoryError" or "out of memory" in text.lower() or "bad_alloc" in text
