"""A network and its optimizer: steps, the state between two of them, and back from that state."""

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
from evergreen_models.flight_delay_net.columns import InputColumns, RowBatch
from evergreen_models.flight_delay_net.network import Network
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.ranks import Ranks
from evergreen_models.flight_delay_net.scales import ColumnStatistics

_TENSORS, _STATISTICS, _SCALER = "tensors.safetensors", "scales.json", "scaler.json"
_WARM_UP_SHARE = 0.05  # of all steps

_UNDESTROYED_MODULES: list[nn.Module] = []
"""Until the process ends: the destructor of what trains together waits, holding the interpreter's lock, for a thread of
Gloo's that may be waiting for that lock (torch 2.13)."""

CHECKPOINT_FILES = (_TENSORS, _STATISTICS, _SCALER)
"""Of a checkpoint."""


class Learner:
    """Trains one network, in one of several processes perhaps, on the CPU or a GPU.

    All that is random in a step follows from the seed, the step and the rank: so no generator's state is kept.
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
        # Only the small exponents of float16 need their gradients scaled up.
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=half is torch.float16)

    def step(self, number: int, total_steps: int, batch: RowBatch, batch_rows: int) -> Tensor:
        """Learn from this process's part of a batch that has so many `rows` in all; gives the mean loss of the part.

        `number` counts from 0, `steps` are all there will be.
        """
        torch.manual_seed(_derive_seed(self._seed, number, self._ranks.rank))
        for group in self._optimizer.param_groups:
            group["lr"] = self._parameters.learning_rate * learning_rate_share(number, total_steps)
        self._optimizer.zero_grad()
        loss = self.summed_loss(self._training_module, batch)
        # Gradients are averaged over the processes, whose parts differ by a row: so each counts by its rows.
        self._scaler.scale(loss * (self._ranks.world_size / batch_rows)).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach() / len(batch)

    def mean_loss(self, batches: Iterator[RowBatch]) -> float:
        """Mean over all rows of all processes, in nats, by the network as it is: nothing is hidden or left out."""
        self.network.eval()
        total, rows = torch.zeros((), dtype=torch.float64, device=self._device), 0
        with torch.inference_mode():
            for batch in batches:
                total += self.summed_loss(self.network, batch)
                rows += len(batch)
        self.network.train()
        return self._ranks.sum_ranks(float(total)) / self._ranks.sum_ranks(rows)

    def checkpoint_state(self) -> Mapping[str, bytes | Callable[[], bytes]]:
        """Of a checkpoint: copies on the CPU, to be serialised when it suits."""
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
        """Go on from where `state` was called."""
        tensors = load(checkpoint.files[_TENSORS])
        weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
        self.network.load_state_dict(weights)
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, number, *what = name.split(".")
            if kind == "optimizer":
                states.setdefault(int(number), {})[what[0]] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})
        if scaler := json.loads(checkpoint.files[_SCALER]):
            self._scaler.load_state_dict(scaler)

    def summed_loss(self, network: nn.Module, batch: RowBatch) -> Tensor:
        """Sum over the rows of the batch."""
        numbers, categories, labels = (
            torch.from_numpy(array).to(self._device) for array in (batch.numbers, batch.categories, batch.labels)
        )
        with self._precision():
            logits = network(numbers, categories)
        return binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")


def _derive_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def learning_rate_share(step: int, total_steps: int) -> float:
    """Share of the highest learning rate: up in a line, then down along half a cosine."""
    up = max(1, round(_WARM_UP_SHARE * total_steps))
    if step < up:
        return (step + 1) / up
    return 0.5 + 0.5 * cos(pi * (step - up) / max(1, total_steps - up))


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
