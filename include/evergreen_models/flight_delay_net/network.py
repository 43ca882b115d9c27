"""The network: categories are embedded, numbers are standardised, hidden layers do the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evergreen_models.flight_delay_net.columns import UNKNOWN_CODE, InputColumns
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.scales import ColumnStatistics

CLIP_DEVIATIONS = 10.0
"""Standard deviations. What lies farther out is taken to lie there: a broken sensor must not outvote all else."""


class Network(nn.Module):
    """Gives the logit of the label, (rows,).

    A missing number is taken as the mean, and the network is told that it is missing. While it trains, a share of
    the inputs is hidden: so it has seen what is missing, and what is unknown, whatever the data holds.
    """

    def __init__(self, columns: InputColumns, statistics: ColumnStatistics, parameters: NetworkParameters):
        super().__init__()
        self.mask_rate = parameters.mask_rate
        # No parameters, so not in a checkpoint's weights: they are the scales, which it holds anyway.
        self.means: Tensor
        self.scale_factors: Tensor
        self.register_buffer("means", torch.tensor(statistics.means, dtype=torch.float32), persistent=False)
        factors = [1 / deviation for deviation in statistics.deviations]
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.float32), persistent=False)
        self.embeddings = nn.ModuleList(
            nn.Embedding(1 + len(words), parameters.embedding_sizes[name])
            for name, words in zip(columns.categories, statistics.vocabularies, strict=True)
        )
        width = 2 * len(columns.numbers) + sum(parameters.embedding_sizes[name] for name in columns.categories)
        self.hidden_layers = nn.ModuleList()
        for wider in parameters.hidden_sizes:
            self.hidden_layers.append(nn.Linear(width, wider))
            width = wider
        self.dropout = nn.Dropout(parameters.dropout)
        self.output_layer = nn.Linear(width, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Of numbers, (rows, numbers), NaN where missing, and the codes of categories, (rows, categories)."""
        missing = torch.isnan(numbers)
        if self.training:
            missing |= torch.rand_like(numbers) < self.mask_rate
            hidden = torch.rand(categories.shape, device=categories.device) < self.mask_rate
            categories = categories.masked_fill(hidden, UNKNOWN_CODE)
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
