"""Errors that Evergreen raises on purpose. A message says what happened, where, and how to fix it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class EvergreenError(Exception):
    """Base class of all of them."""


def first_line(error: BaseException) -> str:
    """Return the first line of the message of `error`, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def validation_problem(error: ValidationError) -> str:
    """Return the first problem of an invalid file: field and message, without the content, which may be hostile."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(ascii(part)[1:-1][:40] if isinstance(part, str) else str(part) for part in fault["loc"])
    return f"{field or 'the file'}: {fault['msg'].removeprefix('Value error, ')}"


@dataclass(frozen=True)
class Fault:
    """One problem of an input. `location` is a path, a file or a field; empty if it has no place of its own."""

    location: str
    problem: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.location}: " if self.location else ""
        return f"{place}{self.problem}" + (f" → {self.fix}" if self.fix else "")


class FaultsError(EvergreenError):
    """An input is invalid; has all of its faults, not only the first."""

    def __init__(self, subject: str, faults: Sequence[Fault]):
        super().__init__(subject, faults)
        self.subject = subject
        self.faults = tuple(faults)

    def __str__(self) -> str:
        count = f"{len(self.faults)} fault" + ("s" if len(self.faults) != 1 else "")
        return "\n".join([f"{self.subject}: {count}", *(f"  - {fault}" for fault in self.faults)])


class SettingsError(FaultsError):
    """An environment variable is not a valid setting."""


class SpecError(FaultsError):
    """The spec of a model is invalid."""


class WindowError(EvergreenError):
    """The periods of a DAG run are missing or invalid."""


class FaultyPeriodsError(FaultsError):
    """Periods of a run are left out, because of faults; `remaining` has what the step returns of the other periods."""

    def __init__(self, subject: str, faults: Sequence[Fault], remaining: Mapping[str, str] | None = None):
        super().__init__(subject, faults)
        self.remaining = dict(remaining or {})


class RawDataError(FaultyPeriodsError):
    """Raw data is missing or invalid; nothing was computed from it."""


class FeatureError(FaultyPeriodsError):
    """Features cannot be computed, or are invalid; nothing of their periods was published."""


class StaleFeaturesError(FaultsError):
    """Periods of features were made by other code, parameters or registers than the rest, or than they would be now."""


class InputsChangedError(EvergreenError):
    """Inputs changed while a step was reading them; its output was discarded."""


class HandoverError(EvergreenError):
    """A task cannot read what an earlier task of its run has returned."""


class DatasetError(EvergreenError):
    """A manifest in the lake is damaged, or names something outside of its dataset."""


class DataVersionError(EvergreenError):
    """A training set of this hash cannot be fetched or pinned: it is not, or no longer, in the lake."""


class StoreError(EvergreenError):
    """An object store cannot be used: it does not keep conditions of writes, or a client of it is missing."""


class TableError(EvergreenError):
    """A table for other programs cannot be made to hold what is published."""


class TrainingError(EvergreenError):
    """A training job did not produce a valid model."""


class TrainingDataError(TrainingError):
    """The input of a training job is invalid or belongs to another job."""


class ScoringError(EvergreenError):
    """A model cannot be scored."""


class RequestError(FaultsError):
    """A request for a prediction lacks what the model needs, or has what it does not know."""


class MissingInputsError(ScoringError):
    """Inputs that a model learned from can no longer be made."""


class ChangedPredictionError(MissingInputsError):
    """A model predicts other classes, quantiles or numbers than the spec declares."""


class SignatureError(ScoringError, FaultsError):
    """Files of a model differ from those registered and signed, or must not be loaded; has all faults."""

    def __str__(self) -> str:
        # One line: it becomes the reason in a gate's result.
        return f"{self.subject} are refused: " + "; ".join(map(str, self.faults))


class NotificationError(EvergreenError):
    """A notification was not sent, or what a route has sent cannot be read."""


class LedgerError(EvergreenError):
    """The ledger of a model is damaged, or a new entry contradicts it."""


class PromotionRefusedError(EvergreenError):
    """A rule forbids this change of champion."""


class RegistryError(EvergreenError):
    """The model registry contradicts the ledger."""
