"""What can be set about the network and its training: the `parameters` of the model's spec, checked."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class NetworkParameters(BaseModel):
    """None has a default: all of them stand in `model.py`, and so in the fingerprint of what they made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_sizes: Mapping[str, PositiveInt] = Field(
        description="numbers that each category of a column becomes; every column of texts is one of these"
    )
    min_category_rows: PositiveInt = Field(description="a category of fewer rows is treated as one never seen")
    hidden_sizes: tuple[PositiveInt, ...] = Field(description="width of each hidden layer")
    dropout: float = Field(ge=0, lt=1, description="share of each hidden layer that is left out, anew each step")
    mask_rate: float = Field(
        gt=0,
        lt=1,
        description="share of the inputs that is hidden, anew each step: from these the network learns what to make "
        "of a missing value or an unknown category, also where the data has none",
    )

    epochs: PositiveInt = Field(description="times that every row is seen")
    batch_rows: PositiveInt = Field(description="of a step, over all processes")
    learning_rate: float = Field(gt=0, description="at its highest, after a twentieth of the steps")
    weight_decay: float = Field(ge=0)

    shuffle_rows: PositiveInt = Field(
        description="rows that are shuffled together; each process holds this window and the next. A row group of the "
        "file that is larger is a window by itself"
    )
