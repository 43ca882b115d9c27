"""Parameters of the network and its training: validates the `parameters` of the model's spec."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class NetworkParameters(BaseModel):
    """None has a default: all are set in `model.py`, and so are part of the candidate's fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_sizes: Mapping[str, PositiveInt] = Field(
        description="length of the embedding of each column of texts; every such column is listed"
    )
    min_category_rows: PositiveInt = Field(description="a category with fewer rows is treated as unknown")
    hidden_sizes: tuple[PositiveInt, ...] = Field(description="width of each hidden layer")
    dropout: float = Field(ge=0, lt=1, description="share of each hidden layer that is dropped in each step")
    mask_rate: float = Field(
        gt=0,
        lt=1,
        description="share of the inputs that is masked in each step: the network learns from these how to treat "
        "a missing value or an unknown category, even if the data has none",
    )

    epochs: PositiveInt = Field(description="passes over all rows")
    batch_rows: PositiveInt = Field(description="rows of a step, over all processes")
    learning_rate: float = Field(gt=0, description="the highest, reached after a twentieth of the steps")
    weight_decay: float = Field(ge=0)

    shuffle_rows: PositiveInt = Field(
        description="rows that are shuffled together; each process holds this window and the next in memory. A larger "
        "row group of the file is a window of its own"
    )
