"""What a step of a trial can end with besides faults."""

from __future__ import annotations


class SkippedStepError(Exception):
    """The step does not apply to the model, or to so few rows; the message says why."""
