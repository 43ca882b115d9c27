"""The network: embedded categories, standardized numbers, and hidden layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evergreen_models.flight_delay_net.column_statistics import ColumnStatistics
from evergreen_models.flight_delay_net.columns import UNKNOWN_CODE, InputColumns
from evergreen_models.flight_delay_net.parameters import NetworkParameters

CLIP_DEVIATIONS = 10.0
"""Numbers are clipped to so many standard deviations: a broken sensor must not dominate all other inputs."""


class Network(nn.Module):
    """Returns the logit of the label, (rows,).

    A missing number is replaced by the mean, and an extra input marks it as missing. During training a share of the
    inputs is masked, so the network learns missing values and unknown categories even if the data has none.
    """

    def __init__(self, columns: InputColumns, statistics: ColumnStatistics, parameters: NetworkParameters):
        super().__init__()
        self.mask_rate = parameters.mask_rate
        # Not saved with the weights, because a checkpoint contains the column statistics.
        self.means: Tensor
        self.scale_factors: Tensor
        factors = [1 / deviation for deviation in statistics.deviations]
        for name, values in (("means", statistics.means), ("scale_factors", factors)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        self.embeddings = nn.ModuleList(
            nn.Embedding(1 + len(words), parameters.embedding_sizes[name])
            for name, words in zip(columns.categories, statistics.vocabularies, strict=True)
        )
        width = 2 * len(columns.numbers) + sum(parameters.embedding_sizes[name] for name in columns.categories)
        self.hidden_layers = nn.ModuleList()
        for size in parameters.hidden_sizes:
            self.hidden_layers.append(nn.Linear(width, size))
            width = size
        self.dropout = nn.Dropout(parameters.dropout)
        self.output_layer = nn.Linear(width, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Take numbers, (rows, numbers), NaN where missing, and the codes of categories, (rows, categories)."""
        missing = torch.isnan(numbers)
        if self.training:
            missing |= torch.rand_like(numbers) < self.mask_rate
            masked = torch.rand(categories.shape, device=categories.device) < self.mask_rate
            categories = categories.masked_fill(masked, UNKNOWN_CODE)
        scaled = (torch.where(missing, self.means, numbers) - self.means) * self.scale_factors
        x = torch.cat(
            [
                scaled.clamp(-CLIP_DEVIATIONS, CLIP_DEVIATIONS),
                missing.to(scaled.dtype),
                *(embedding(categories[:, n]) for n, embedding in enumerate(self.embeddings)),
            ],
            dim=1,
        )
        for layer in self.hidden_layers:
            x = self.dropout(torch.relu(layer(x)))
        return self.output_layer(x).squeeze(1)
