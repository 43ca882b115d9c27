"""What tasks hand to one another through XCom.

DAG files import this module, so methods import what they need themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from evergreen.errors import Fault, HandoverError
from evergreen.periods import Calendar
from evergreen.spec import Frozen, Period
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window

if TYPE_CHECKING:
    from evergreen.batch_predictions import ScoringModel
    from evergreen.evaluation import Champion
    from evergreen.lake.datasets import Manifest
    from evergreen.ledger import VerdictRecorded
    from evergreen.promotion.service import PromotionRequest

XCom = Any
"""A parameter of a task is an XComArg when the DAG is built, and the JSON of an earlier task's result when it runs.
A task that is annotated to return a dict would also push every key, such as each period, as an XCom of its own."""
Reference = dict[str, str]
"""`Manifest.reference` of a published partition."""


class Handover(Frozen):
    """Base class: a frozen object that travels through XCom as JSON."""

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def load(cls, xcom: XCom) -> Self:
        """Parse what another task has dumped.

        Raises:
            HandoverError: a field is missing, invalid or unknown.
        """
        try:
            return cls.model_validate(xcom)
        except ValidationError as error:
            raise HandoverError(
                f"the XCom of an earlier task is not a {cls.__name__}, perhaps of another version of Evergreen; "
                f"clear the run from the start: {error}"
            ) from None


class FeaturesPlan(Handover):
    """Result of `plan` of the features DAG."""

    run_reason: RunReason
    periods: tuple[Period, ...]
    """The periods that the run is about."""
    build_periods: tuple[Period, ...] = ()
    """The periods that the run builds: unpublished periods of its own and of runs that wait for it."""


class StepResult(Handover):
    """Result of a step of the features DAG, for the periods that are not faulty."""

    periods: dict[str, str]
    """Fingerprint, folder or content hash of each period."""
    faults: tuple[Fault, ...] = ()
    """Of the run's own periods that this step and those before it have left out."""


class RetrainPlan(Handover):
    """Result of `plan` of the retrain DAG."""

    start: Period
    end: Period
    run_reason: RunReason
    calendar: Calendar
    cause: str | None = None
    """What the alarms say that asked for the run, if some did."""
    champion_version: str | None = None
    champion_content: str | None = None
    """What was champion when the run was planned; its version is a name."""
    champion_labels_until: Period | None = None
    accepted_change: str | None = None
    """Who has accepted that inputs of the champion can no longer be made, and why."""
    promotes: bool = False
    """Whether a backfill judges and promotes as scheduled runs do."""
    pause: str | None = None
    """Why the run trains and judges nothing: the model is frozen or cooling down."""

    def window(self) -> Window:
        return Window.from_range(self.start, self.end, self.run_reason, self.calendar, self.cause)

    def champion(self) -> Champion | None:
        """The version that the candidate is judged against."""
        from evergreen.evaluation import Champion

        if self.champion_version is None or self.champion_labels_until is None or self.champion_content is None:
            return None
        return Champion(
            self.champion_version,
            self.champion_labels_until,
            content=self.champion_content,
            accepted_change=self.accepted_change,
        )

    def promotion_request(self, entry: int, version: str, approved_by: str | None = None) -> PromotionRequest:
        from evergreen.promotion.service import PromotionRequest

        return PromotionRequest(entry, version, self.run_reason, self.promotes, approved_by=approved_by)


class LookPlan(Handover):
    """Result of `plan` of the monitor DAG."""

    start: Period
    end: Period
    """Until when, exclusively, the run knows the data: its `as_of`."""
    run_reason: RunReason
    calendar: Calendar
    first_entry: int | None = None
    """The entry of the first verdict of the comparison that is looked at; None: there is nothing to look at."""
    periods: tuple[Period, Period] | None = None
    """The periods of all evidence so far, first ≤ period < end."""
    challenger_version: str | None = None
    challenger_content: str | None = None
    champion_version: str | None = None
    champion_content: str | None = None
    labels_until: Period | None = None
    """Neither model has learned from a label of this period or later."""
    verdict_entry: int | None = None
    """The entry of a verdict that has passed, of a challenger whose promotion waits."""

    def window(self) -> Window:
        return Window.from_range(self.start, self.end, self.run_reason, self.calendar)

    def promotion_request(self, entry: int, version: str, approved_by: str | None = None) -> PromotionRequest:
        from evergreen.promotion.service import PromotionRequest

        return PromotionRequest(entry, version, self.run_reason, approved_by=approved_by, as_of=self.end)

    def challenger(self) -> Champion:
        return self._model(self.challenger_version, self.challenger_content)

    def champion(self) -> Champion:
        return self._model(self.champion_version, self.champion_content)

    def _model(self, version: str | None, content: str | None) -> Champion:
        from evergreen.evaluation import Champion

        assert version
        assert content
        assert self.labels_until
        return Champion(version, self.labels_until, content=content)


class ScorePlan(Handover):
    """Result of `plan` of the score DAG."""

    periods: tuple[Period, ...] = ()
    """The periods that the run scores."""
    rescore: bool = False
    model_version: str | None = None
    model_content: str | None = None
    labels_until: Period | None = None
    """The champion, and until when it has learned from labels; None: there is none."""

    def scoring_model(self) -> ScoringModel:
        from evergreen.batch_predictions import ScoringModel

        assert self.model_version
        assert self.model_content
        assert self.labels_until
        return ScoringModel(self.model_version, self.model_content, self.labels_until)


class ScoredLook(Handover):
    """Result of `evaluate` of the monitor DAG."""

    examples_reference: Reference
    evaluation_reference: Reference

    def examples(self, model: ModelSpec) -> Manifest:
        from evergreen.feature_store import training_sets

        return training_sets.look_dataset(model).resolve(self.examples_reference)

    def evaluation(self, model: ModelSpec) -> Manifest:
        from evergreen.evaluation import evaluation_dataset

        return evaluation_dataset(model).resolve(self.evaluation_reference)


class JudgedVerdict(Handover):
    """What the tasks `judge` have in common: a verdict in the ledger, and the path of its report."""

    entry: int
    report: str

    @classmethod
    def from_judge(cls, xcom: XCom) -> JudgedVerdict:
        """Parse it from the result of either task `judge`."""
        return JudgedVerdict.load({name: xcom.get(name) for name in JudgedVerdict.model_fields})

    def verdict_event(self, model_name: str) -> VerdictRecorded:
        from evergreen import ledger

        return ledger.read_verdict_event(model_name, self.entry)


class TrainedCandidate(Handover):
    """Result of `train`. Methods raise InputsChangedError if another run has replaced what they resolve."""

    training_set_reference: Reference
    candidate_reference: Reference

    def training_set(self, model: ModelSpec) -> Manifest:
        from evergreen.feature_store import training_sets

        return training_sets.training_set_dataset(model).resolve(self.training_set_reference)

    def candidate(self, model: ModelSpec) -> Manifest:
        from evergreen.training import candidates

        return candidates.candidate_dataset(model).resolve(self.candidate_reference)


class EvaluatedCandidate(TrainedCandidate):
    """Result of `evaluate`."""

    evaluation_reference: Reference

    def evaluation(self, model: ModelSpec) -> Manifest:
        from evergreen.evaluation import evaluation_dataset

        return evaluation_dataset(model).resolve(self.evaluation_reference)


class JudgedCandidate(EvaluatedCandidate, JudgedVerdict):
    """Result of `judge` of the retrain DAG."""
