"""The processes that train together, started by torchrun: which one this is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Ranks:
    """This process among them.

    Attributes:
        rank: its number from 0; on one machine also that of its GPU.
        count: how many there are.
    """

    rank: int = 0
    world_size: int = 1

    def any_rank(self, value: bool) -> bool:
        """Whether it is so in any of them. Waits for all."""
        if self.world_size == 1:
            return value
        found = torch.tensor(int(value))
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return bool(found)

    def sum_ranks(self, value: float) -> float:
        """Over all of them."""
        if self.world_size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(found)
        return float(found)

    def broadcast_first(self, data: bytes | None) -> bytes | None:
        """What the first of them has; what the others have is passed over."""
        if self.world_size == 1:
            return data
        size = torch.tensor(-1 if data is None else len(data))
        distributed.broadcast(size, 0)
        if size < 0:
            return None
        told = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == 0 and data:
            told = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        distributed.broadcast(told, 0)
        return told.numpy().tobytes()


@contextmanager
def join_ranks(gpu: bool) -> Iterator[Ranks]:
    """Meet the others, if there are any. They part when all is well; an error in one ends them all."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    # Gradients go between GPUs by NCCL; what else is told is small and on the CPU, where Gloo serves.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    yield Ranks(distributed.get_rank(), distributed.get_world_size())
    distributed.destroy_process_group()
