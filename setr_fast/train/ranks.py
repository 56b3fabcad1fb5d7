"""Processes of one training run: who we are, how we join, how we leave."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from setr_fast.errors import EXIT_LOST, SetrFastError

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class LostContactError(SetrFastError):
    """Another process of the run is gone or cannot be reached."""

    exit_code = EXIT_LOST


@dataclass(frozen=True)
class Ranks:
    """This process among all of the run's."""

    rank: int
    world_size: int
    device: torch.device
    local_world_size: int = 1
    """Processes on this host."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def most(self, value: float) -> float:
        """Return the largest value of any process (a collective: all must call it)."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(float(value), device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor.item())

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set in any process (a collective)."""
        return bool(self.most(float(flag)))

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes (a collective)."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes (a collective)."""
        return self.sum(value) / self.world_size

    def every(self, value: Any) -> list[Any]:
        """Return each process's value, in order of rank (a collective)."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def first(self, value: Any) -> Any:
        """Return the first process's value (a collective)."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def by_one_voice(self, error: SetrFastError) -> BaseException:
        """Return what to raise where every process has come to the same error: the first says it, all end with it."""
        return error if self.is_first else SystemExit(error.exit_code)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def joined(group: bool, timeout_s: float = 600.0) -> Iterator[Ranks]:
    """Join the ranks that a launcher started, or be the only one; leave in order.

    With ``group`` a process group exists even for one process, which FSDP2 needs.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = Ranks(rank, world_size, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_launcher()
    if not (group or world_size > 1):
        yield ranks
        return
    # Two libraries on a GPU machine: checkpoints are coordinated on the CPU while the GPUs go on.
    kind = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if world_size > 1:
        dist.init_process_group(kind, timeout=timedelta(seconds=timeout_s))
    else:  # a store in memory: no port, so any number of runs fit on one machine
        dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield ranks
        # gloo's worker threads may still hold tensors when the interpreter shuts down, which aborts the process:
        # let go of everything, meet once more, and end the group before leaving.
        gc.collect()
        ranks.barrier()
    except RuntimeError as error:
        if not _lost_contact(error):
            raise
        raise LostContactError(
            f"train: process {rank} lost contact with the others ({' '.join(str(error).split())[-160:]}); the newest "
            "checkpoint is untouched, go on with --resume"
        ) from None
    finally:
        dist.destroy_process_group()
        gc.collect()


def by_first(ranks: Ranks, do: Callable[[], T]) -> T:
    """Do something in the first process alone and return the result in all (a collective).

    Where it fails, the first process raises and the others leave quietly with the same exit code.
    """
    result: T | None = None
    failure: SetrFastError | None = None
    if ranks.is_first:
        try:
            result = do()
        except SetrFastError as error:
            failure = error
    code, result = ranks.first((failure.exit_code if failure else 0, result))
    if failure is not None:
        raise failure
    if code:
        raise SystemExit(code)
    return cast(T, result)


def _lost_contact(error: RuntimeError) -> bool:
    """Return whether a collective failed because another process is gone or out of reach."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _end_with_launcher() -> None:
    """Have the kernel end this process when its launcher is killed: an orphan would train on beside its successor."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was killed between the two calls
        os.kill(os.getpid(), signal.SIGKILL)
