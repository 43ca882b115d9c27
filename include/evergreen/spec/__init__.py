"""What a data scientist declares about a model: its spec, its gates, and the loader of model folders."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of everything that is declared or stored: it cannot be changed, and has no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
