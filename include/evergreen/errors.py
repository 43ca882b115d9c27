"""Every error that Evergreen raises on purpose: what happened, where, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class EvergreenError(Exception):
    """Root of all of them: `except EvergreenError` means "Evergreen refused, and said why"."""


def first_line(error: BaseException) -> str:
    """Return the first line of the message of `error`, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: `where` it is (a path, a file, a field), `what` is wrong, `way_out`."""

    location: str
    problem: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.location}: {self.problem}" + (f" → {self.fix}" if self.fix else "")


class FaultsError(EvergreenError):
    """An input was refused; carries all of its faults, not only the first."""

    def __init__(self, subject: str, faults: Sequence[Fault]):
        super().__init__(subject, faults)
        self.subject = subject
        self.faults = tuple(faults)

    def __str__(self) -> str:
        count = f"{len(self.faults)} fault" + ("s" if len(self.faults) != 1 else "")
        return "\n".join([f"{self.subject}: {count}", *(f"  - {fault}" for fault in self.faults)])


class SettingsError(FaultsError):
    """The environment holds what is no setting."""


class SpecError(FaultsError):
    """A model's spec cannot be used."""


class WindowError(EvergreenError):
    """A run does not say, or says wrongly, which days it is about."""


class RawDataError(FaultsError):
    """Raw data is missing or breaks a rule; nothing was computed from it."""


class FeatureError(FaultsError):
    """Computed features break a rule; nothing was published."""


class InputsChangedError(EvergreenError):
    """Inputs changed while a step was reading them; what it made was thrown away."""


class HandoverError(EvergreenError):
    """A task cannot read what an earlier task of its run has returned."""


class TrainingError(EvergreenError):
    """A training job did not leave a valid model."""


class TrainingDataError(TrainingError):
    """What a training job was given cannot be learned from, or does not belong to it."""


class ScoringError(EvergreenError):
    """A model cannot be scored; the sentence says which and why."""


class SignatureError(ScoringError, FaultsError):
    """Files of a model are not what was registered and signed, or may not be loaded; carries all faults."""

    def __str__(self) -> str:
        # One line: it becomes the reason of a gate's record.
        return f"{self.subject} are refused: " + "; ".join(map(str, self.faults))


class LedgerError(EvergreenError):
    """The record of a model's champions is damaged, or what should be added contradicts it."""


class PromotionRefusedError(EvergreenError):
    """The rules forbid this change of champion; the sentence says which rule, and the way out."""


class RegistryError(EvergreenError):
    """The model registry does not hold what the ledger says it should."""
