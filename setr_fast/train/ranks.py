"""Processes of one training run: who we are, how we join, how we leave."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among all of the run's."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set in any process (a collective: all must call it)."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes (a collective)."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def joined(group: bool) -> Iterator[Ranks]:
    """Join the ranks that a launcher started, or be the only one; leave in order.

    With ``group`` a process group exists even for one process, which FSDP2 needs.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = Ranks(rank, world_size, device)
    if not (group or world_size > 1):
        yield ranks
        return
    kind = "nccl" if device.type == "cuda" else "gloo"
    if world_size > 1:
        dist.init_process_group(kind, timeout=timedelta(minutes=10))
    else:  # a store in memory: no port, so any number of runs fit on one machine
        dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield ranks
        # gloo's worker threads may still hold tensors when the interpreter shuts down, which aborts the process:
        # let go of everything, meet once more, and end the group before leaving.
        gc.collect()
        ranks.barrier()
    finally:
        dist.destroy_process_group()
        gc.collect()
