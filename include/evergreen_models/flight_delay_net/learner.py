"""A network and its optimizer: training steps, and the state that a checkpoint saves and restores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import cos, pi

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from evergreen.training.checkpoints import Checkpoint
from evergreen_models.flight_delay_net.column_statistics import ColumnStatistics
from evergreen_models.flight_delay_net.columns import InputColumns, RowBatch
from evergreen_models.flight_delay_net.network import Network
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.ranks import Ranks

_TENSORS, _STATISTICS, _SCALER = "tensors.safetensors", "column_statistics.json", "scaler.json"
CHECKPOINT_FILES = (_TENSORS, _STATISTICS, _SCALER)
_WARM_UP_SHARE = 0.05  # of all steps

_UNDESTROYED_MODULES: list[nn.Module] = []
"""Kept until the process ends: the destructor of DistributedDataParallel waits, holding the GIL, for a thread of Gloo
that may be waiting for the GIL (torch 2.13)."""


class Learner:
    """Trains one network on the CPU or a GPU, alone or as one of several processes.

    All randomness of a step follows from the seed, the step and the rank, so no generator's state has to be saved.
    """

    def __init__(
        self,
        columns: InputColumns,
        statistics: ColumnStatistics,
        parameters: NetworkParameters,
        *,
        seed: int,
        gpu: bool,
        ranks: Ranks,
    ):
        self._statistics, self._parameters, self._seed, self._ranks = statistics, parameters, seed, ranks
        self._device = torch.device("cuda", ranks.rank) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(self._device)
        torch.manual_seed(seed)
        self.network = Network(columns, statistics, parameters).to(self._device)
        self._training_module: nn.Module = self.network
        if ranks.world_size > 1:
            self._training_module = DistributedDataParallel(self.network, broadcast_buffers=False)
            _UNDESTROYED_MODULES.append(self._training_module)
        self._optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=parameters.weight_decay, fused=True)
        half = gpu and (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
        self._precision: Callable[[], AbstractContextManager[object]] = (
            (lambda: torch.autocast("cuda", dtype=half)) if half else nullcontext
        )
        # Only float16, with its small exponents, needs scaled gradients.
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=half is torch.float16)

    def step(self, number: int, total_steps: int, batch: RowBatch, batch_rows: int) -> Tensor:
        """Train on this process's part of a batch with `batch_rows` rows in total; return the mean loss of the part.

        Args:
            number: of the step, from 0.
            total_steps: number of steps of the whole training.
            batch: this process's part.
            batch_rows: rows of all parts.
        """
        torch.manual_seed(_derive_seed(self._seed, number, self._ranks.rank))
        for group in self._optimizer.param_groups:
            group["lr"] = self._parameters.learning_rate * learning_rate_share(number, total_steps)
        self._optimizer.zero_grad()
        loss = self.summed_loss(self._training_module, batch)
        # Gradients are averaged over the processes, whose parts differ by a row, so each is weighted by its rows.
        self._scaler.scale(loss * (self._ranks.world_size / batch_rows)).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach() / len(batch)

    def mean_loss(self, batches: Iterator[RowBatch]) -> float:
        """Return the mean loss over all rows of all processes, in nats, without masking and dropout."""
        self.network.eval()
        total, rows = torch.zeros((), dtype=torch.float64, device=self._device), 0
        with torch.inference_mode():
            for batch in batches:
                total += self.summed_loss(self.network, batch)
                rows += len(batch)
        self.network.train()
        return self._ranks.sum_ranks(float(total)) / self._ranks.sum_ranks(rows)

    def checkpoint_state(self) -> Mapping[str, bytes | Callable[[], bytes]]:
        """Return the content of a checkpoint: copies on the CPU, which are serialized later."""
        tensors = {f"weights.{name}": _copy_to_cpu(weight) for name, weight in self.network.state_dict().items()}
        for number, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": _copy_to_cpu(tensor) for name, tensor in state.items()}
        return {
            _TENSORS: lambda: save(tensors),
            _STATISTICS: self._statistics.to_json(),
            _SCALER: json.dumps(self._scaler.state_dict()).encode(),
        }

    @classmethod
    def load_statistics(cls, checkpoint: Checkpoint) -> ColumnStatistics:
        return ColumnStatistics.from_json(checkpoint.files[_STATISTICS])

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore what `checkpoint_state` returned."""
        tensors = load(checkpoint.files[_TENSORS])
        weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
        self.network.load_state_dict(weights)
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                states.setdefault(int(number), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})
        if scaler := json.loads(checkpoint.files[_SCALER]):
            self._scaler.load_state_dict(scaler)

    def summed_loss(self, network: nn.Module, batch: RowBatch) -> Tensor:
        """Return the sum of the loss over the rows of the batch."""
        numbers, categories, labels = (
            torch.from_numpy(array).to(self._device) for array in (batch.numbers, batch.categories, batch.labels)
        )
        with self._precision():
            logits = network(numbers, categories)
        return binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")


def _derive_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def learning_rate_share(step: int, total_steps: int) -> float:
    """Return the share of the highest learning rate: a linear warm-up, then half a cosine down."""
    warm_up = max(1, round(_WARM_UP_SHARE * total_steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * cos(pi * (step - warm_up) / max(1, total_steps - warm_up))


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
