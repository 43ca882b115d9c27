"""What a data scientist declares about a model: one frozen, validated `Model` in the model's folder.

Importing this module, and so a model's `model.py`, costs no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Self
from zoneinfo import available_timezones

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from evergreen.errors import Fault, SpecError
from evergreen.spec.gates import Gate

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Cron = Annotated[str, StringConstraints(pattern=r"^\S+( \S+){4}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RawSource(_Part):
    """One kind of raw data. A day of features needs its drop of that day and of `trailing_days` before."""

    name: Name
    daily: bool = Field(True, description="one drop per day; otherwise one drop that holds for every day")
    trailing_days: int = Field(0, ge=0, le=366)

    @model_validator(mode="after")
    def _check_trailing_days(self) -> Self:
        if self.trailing_days and not self.daily:
            raise ValueError("trailing_days needs daily drops: leave one of them out")
        return self


class FeatureSpec(_Part):
    """A family of feature views that one model folder builds and any number of models use.

    `spine` names the dataset of examples: one row per thing to predict, with its keys, `event_timestamp`
    (when the prediction is made), `label`, and `label_known_at`.
    """

    timezone: str = Field(description="a day begins at midnight here")
    first_day: date = Field(description="no raw data exists before this day")
    last_day: date | None = Field(None, description="nor after this one: for data that has ended")
    schedule: Cron = Field("0 0 * * *", description="cron, in `timezone`; one run per day")
    sources: tuple[RawSource, ...] = Field(min_length=1)
    views: tuple[Name, ...] = Field(min_length=1)
    spine: Name

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.last_day and self.last_day < self.first_day:
            raise ValueError(f"last_day {self.last_day} is before first_day {self.first_day}: swap them")
        if self.timezone not in available_timezones():
            raise ValueError(f"{self.timezone!r} is no IANA time zone: write one like 'America/New_York'")
        for field, names in (("sources", [s.name for s in self.sources]), ("views", list(self.views))):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{field} names {', '.join(twice)} twice: drop one")
        if self.spine in self.views:
            raise ValueError(f"spine {self.spine!r} is also a view: the spine holds labels, name it once")
        return self

    @property
    def tables(self) -> tuple[str, ...]:
        """All tables of a published day."""
        return (self.spine, *self.views)


class Resources(_Part):
    """What one training attempt may use: one process here, or one pod."""

    cpu: int = Field(2, ge=1)
    memory_gib: float = Field(4, gt=0)
    gpu: int = Field(0, ge=0)
    gpu_type: str | None = Field(None, description="the kind of GPU, as nodes are labelled with it")
    processes: int = Field(1, ge=1, description="started by torchrun; with GPUs one each at most")
    shm_gib: float = Field(1, gt=0, description="shared memory, which data loaders and NCCL use; part of memory_gib")
    timeout_minutes: int = Field(60, ge=1, description="an attempt that takes longer is ended")
    checkpoint_seconds: float = Field(60, gt=0, description="so much work is lost at most")
    spot: bool = Field(True, description="may run on nodes that are cheaper and may be taken away")
    max_preemptions: int = Field(20, ge=0, description="attempts that are begun again at once, of one try of the task")
    node_selector: Mapping[str, str] = Field(default_factory=dict, description="labels of nodes it may run on")
    priority_class: str | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.gpu and self.processes > self.gpu:
            raise ValueError(f"processes is {self.processes} with {self.gpu} GPUs: give each process one")
        if self.gpu_type and not self.gpu:
            raise ValueError(f"gpu_type is {self.gpu_type!r} and gpu is 0: say how many")
        if self.shm_gib > self.memory_gib:
            raise ValueError(f"shm_gib {self.shm_gib:g} is part of memory_gib {self.memory_gib:g}: raise that")
        return self


class ApprovalPolicy(_Part):
    """A person has to agree before a candidate that passed its gates is promoted. Silence is a no."""

    timeout_hours: int = Field(24, ge=1, description="not answered for so long: rejected")
    approvers: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(
        (), description="Airflow users who may answer; empty: whoever may work with the DAG"
    )


class ModelSpec(_Part):
    """Everything Evergreen needs to keep one model fresh. See docs/add-a-model.md for a tour."""

    name: Name
    owner: Annotated[str, StringConstraints(min_length=1)] = Field(description="the team")
    description: str = ""

    features: FeatureSpec | Name = Field(description="its own features, or the name of the model that builds them")
    feature_service: Name = Field(description="the Feast feature service that lists its inputs")
    request_columns: tuple[Name, ...] = Field((), description="inputs that come with the request: spine columns")
    label: Name = "label"

    schedule: Cron = Field(description="when to retrain: cron, in the features' time zone")
    retrain_after_days: int | None = Field(
        None, ge=1, description="retrain also once so many days of features are new or corrected"
    )
    train_days: int = Field(365, ge=1, description="newest days before the holdout to train on, at most")
    holdout_days: int = Field(7, ge=1, description="days before `as_of` on which models are judged")

    parameters: Mapping[str, Any] = Field(default_factory=dict, description="handed to train.fit as they are")
    seed: int = Field(0, ge=0)
    training_libraries: tuple[str, ...] = Field(
        (), description="packages of the trainer's environment whose versions the trained model depends on"
    )
    resources: Resources = Resources()

    gates: tuple[Gate, ...] = Field(min_length=1, description="all must pass, or the champion stays")
    cooldown_days: int = Field(0, ge=0, description="days of data that a new champion is left alone, at least")
    approval: ApprovalPolicy | None = Field(None, description="who must agree to a promotion; None: the gates suffice")

    def __init__(self, **fields: Any):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise SpecError(f"model {fields.get('name', '?')}", _validation_faults(error)) from None

    @model_validator(mode="after")
    def _check_gate_names(self) -> Self:
        names = [gate.name for gate in self.gates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"gates: two are named {', '.join(twice)}; give one of them another name")
        return self

    @property
    def history_days(self) -> int:
        """Days of labels that a retrain looks at."""
        return self.train_days + self.holdout_days

    @property
    def builds_features(self) -> bool:
        return isinstance(self.features, FeatureSpec)

    @property
    def feature_model(self) -> str:
        """Name of the model folder that builds this model's features."""
        return self.name if isinstance(self.features, FeatureSpec) else self.features


_FIXES = {
    "extra_forbidden": "remove it, or correct its spelling",
    "missing": "add it",
}


def _validation_faults(error: ValidationError) -> list[Fault]:
    """One fault per field, with its path. A union reports each of its members: the one that was meant is kept."""
    faults = []
    details = error.errors(include_url=False)
    places = [detail["loc"] for detail in details]
    for detail in details:
        inside = len(detail["loc"])
        if detail["type"] == "too_short" and any(p[:inside] == detail["loc"] and p[inside:] for p in places):
            continue  # the list is short because an item of it is wrong, which is told already
        path = [str(part) for part in detail["loc"]]
        if path[:1] == ["features"] and len(path) > 1:
            if path[1] == "constrained-str":
                continue  # the features were given as a table, not as another model's name
            path.pop(1)
        if path[:1] == ["gates"] and len(path) > 2:
            path.pop(2)  # the kind of the gate: it is not part of what the user wrote
        what = detail["msg"].removeprefix("Value error, ")
        what = what[0].lower() + what[1:]
        if detail["type"] not in ("missing", "value_error"):
            what += f", got {detail['input']!r}"
        faults.append(Fault(".".join(path) or "MODEL", what, _FIXES.get(detail["type"], "")))
    return faults
