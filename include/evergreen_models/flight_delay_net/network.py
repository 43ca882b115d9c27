"""The network: categories are embedded, numbers are standardised, hidden layers do the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evergreen_models.flight_delay_net.columns import UNKNOWN, Columns
from evergreen_models.flight_delay_net.parameters import Parameters
from evergreen_models.flight_delay_net.scales import Scales

FARTHEST = 10.0
"""Standard deviations. What lies farther out is taken to lie there: a broken sensor must not outvote all else."""


class Network(nn.Module):
    """Gives the logit of the label, (rows,).

    A missing number is taken as the mean, and the network is told that it is missing. While it trains, a share of
    the inputs is hidden: so it has seen what is missing, and what is unknown, whatever the data holds.
    """

    def __init__(self, columns: Columns, scales: Scales, parameters: Parameters):
        super().__init__()
        self.masked = parameters.masked
        # No parameters, so not in a checkpoint's weights: they are the scales, which it holds anyway.
        self.means: Tensor
        self.factors: Tensor
        self.register_buffer("means", torch.tensor(scales.means, dtype=torch.float32), persistent=False)
        factors = [1 / deviation for deviation in scales.deviations]
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.float32), persistent=False)
        self.embeddings = nn.ModuleList(
            nn.Embedding(1 + len(words), parameters.embedding[name])
            for name, words in zip(columns.categories, scales.vocabularies, strict=True)
        )
        width = 2 * len(columns.numbers) + sum(parameters.embedding[name] for name in columns.categories)
        self.hidden = nn.ModuleList()
        for wider in parameters.hidden:
            self.hidden.append(nn.Linear(width, wider))
            width = wider
        self.dropout = nn.Dropout(parameters.dropout)
        self.last = nn.Linear(width, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Of numbers, (rows, numbers), NaN where missing, and the codes of categories, (rows, categories)."""
        missing = torch.isnan(numbers)
        if self.training:
            missing |= torch.rand_like(numbers) < self.masked
            hidden = torch.rand(categories.shape, device=categories.device) < self.masked
            categories = categories.masked_fill(hidden, UNKNOWN)
        scaled = (torch.where(missing, self.means, numbers) - self.means) * self.factors
        x = torch.cat(
            [
                scaled.clamp(-FARTHEST, FARTHEST),
                missing.to(scaled.dtype),
                *(embedding(categories[:, n]) for n, embedding in enumerate(self.embeddings)),
            ],
            dim=1,
        )
        for layer in self.hidden:
            x = self.dropout(torch.relu(layer(x)))
        return self.last(x).squeeze(1)
