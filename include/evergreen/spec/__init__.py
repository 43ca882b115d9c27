"""What a data scientist declares about a model: its spec, its gates, and the loader of model folders."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

NAME_PATTERN = r"[a-z][a-z0-9_]*"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
NonEmptyStr = Annotated[str, StringConstraints(min_length=1)]


class Frozen(BaseModel):
    """Base of everything that is declared or stored: it cannot be changed, and has no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
