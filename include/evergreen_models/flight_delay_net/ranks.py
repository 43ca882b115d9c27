"""The processes that train together, started by torchrun: the rank of this one, and their communication."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and collective operations, which wait for all processes.

    Attributes:
        rank: number of this process, from 0; on one machine also the number of its GPU.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def any_rank(self, value: bool) -> bool:
        """Return whether `value` is true in any process."""
        if self.world_size == 1:
            return value
        result = torch.tensor(int(value))
        distributed.all_reduce(result, distributed.ReduceOp.MAX)
        return bool(result)

    def sum_ranks(self, value: float) -> float:
        """Return the sum of `value` over all processes."""
        if self.world_size == 1:
            return value
        result = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(result)
        return float(result)

    def broadcast_first(self, data: bytes | None) -> bytes | None:
        """Return the `data` of rank 0 in every process; that of the others is ignored."""
        if self.world_size == 1:
            return data
        size = torch.tensor(-1 if data is None else len(data))
        distributed.broadcast(size, 0)
        if size < 0:
            return None
        content = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == 0 and data:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        distributed.broadcast(content, 0)
        return content.numpy().tobytes()


@contextmanager
def join_ranks(gpu: bool) -> Iterator[Ranks]:
    """Join the process group, if there is one, and leave it on success; an error in one process ends them all."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    # NCCL exchanges gradients between GPUs; everything else is small and on the CPU, which Gloo supports.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    yield Ranks(distributed.get_rank(), distributed.get_world_size())
    distributed.destroy_process_group()
