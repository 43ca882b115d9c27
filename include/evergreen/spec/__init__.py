"""What a data scientist declares about a model: its spec, its gates, and the loader of model folders."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, PlainValidator, StringConstraints

from evergreen.periods import Duration, is_period

NAME_PATTERN = r"[a-z][a-z0-9_]*"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
NonEmptyStr = Annotated[str, StringConstraints(min_length=1)]


def _parse_duration(value: object) -> Duration:
    return value if isinstance(value, Duration) else Duration.parse(value)


DurationText = Annotated[Duration, PlainValidator(_parse_duration, json_schema_input_type=str), PlainSerializer(str)]
"""A length of time, written as a count and a unit: `90d`, `36h`, `15min`."""


def _check_positive(duration: Duration) -> Duration:
    if not duration:
        raise ValueError(f"{duration} is no time: write a longer one")
    return duration


PositiveDuration = Annotated[DurationText, AfterValidator(_check_positive)]


def _check_period(name: str) -> str:
    if not is_period(name):
        raise ValueError(f"{name[:40]!a} is no period like 2013-03-10 or 2013-03-10T06:00Z")
    return name


Period = Annotated[str, AfterValidator(_check_period)]
"""The name of a period: see `evergreen.periods`."""


class Frozen(BaseModel):
    """Base of everything that is declared or stored: it cannot be changed, and has no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
