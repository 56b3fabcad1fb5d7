"""Processes of one training run: who we are, how we join, how we leave."""

from __future__ import annotations

import atexit
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
from torch.distributed.distributed_c10d import _set_pg_timeout

from setr_fast.errors import EXIT_INTERRUPTED, EXIT_LOST, BackendError, SetrFastError

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
START_S = 3600.0
"""Seconds that processes wait for each other before training: the first one may be looking through all data."""

# What NCCL says when a peer is gone or out of reach; its other errors (two processes on one GPU, no shared memory) come
# back with every restart. Source: nccl.h (ncclRemoteError), NCCL's src/misc/socket.cc, torch's ProcessGroupNCCL.cpp.
_NCCL_LOST = (
    "ncclremoteerror",
    "remote process exit",
    "closed by remote peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "no route to host",
    "unreachable",
)


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
    timeout_s: float = 600.0
    """Seconds that a collective waits for the others."""

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

    def group(self) -> dist.ProcessGroup | None:
        """Return a group of all processes for work on the CPU beside the training's own (a collective)."""
        if self.world_size == 1:
            return None
        # torch would give it half an hour, whatever the run's own timeout is
        made: dist.ProcessGroup | None = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_s))
        return made

    def keep_time(self, *groups: dist.ProcessGroup) -> None:
        """Hold these groups, or that of all processes, to the run's timeout from here on."""
        if self.world_size > 1:
            for group in groups or (dist.group.WORLD,):
                _set_pg_timeout(timedelta(seconds=self.timeout_s), group)


@contextmanager
def joined(group: bool, timeout_s: float = 600.0) -> Iterator[Ranks]:
    """Join the ranks that a launcher started, or be the only one; leave in order.

    With ``group`` a process group exists even for one process, which FSDP2 needs. Until ``keep_time`` is called,
    processes wait for each other for an hour at least.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = device_of(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = Ranks(rank, world_size, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), timeout_s)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_launcher()
    if not (group or world_size > 1):
        yield ranks
        return
    # Two libraries on a GPU machine: checkpoints are coordinated on the CPU while the GPUs go on. The group is bound to
    # no device (device_id): barriers and objects then travel over gloo, whose errors are told as errors, and meshes
    # make their groups anew, where bound ones would split this one, which holds gloo too.
    kind = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if world_size > 1:
        dist.init_process_group(kind, timeout=timedelta(seconds=max(START_S, timeout_s)))
    else:  # a store in memory: no port, so any number of runs fit on one machine
        dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield ranks
        # gloo's worker threads may still hold tensors when the interpreter shuts down, which aborts the process:
        # let go of everything, meet once more, and end the group before leaving.
        gc.collect()
        ranks.barrier()
    except BaseException as caught:
        error = explained(caught, rank)
        if world_size > 1:  # NCCL would wait for the others in destroying its group, and they for this process
            atexit.register(_leave, _code_of(error))
        else:
            dist.destroy_process_group()
        if error is caught:
            raise
        raise error from None
    dist.destroy_process_group()
    gc.collect()


def device_of(local_rank: int) -> torch.device:
    """Return the device of a host's process: the GPU of its number, or the one that a scheduler lets it see."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    seen = torch.cuda.device_count()
    if local_rank >= seen > 1:
        raise BackendError(
            f"train: process {local_rank} of this host must have a GPU, got {seen}; start {seen} at most"
        )
    return torch.device("cuda", local_rank if local_rank < seen else 0)


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


def explained(error: BaseException, rank: int) -> BaseException:
    """Return an error of the libraries between processes as one of ours, any other as it is."""
    text = " ".join(str(error).split())
    found = text.lower()
    if not isinstance(error, RuntimeError) or not (isinstance(error, dist.DistError) or "gloo" in found):
        return error
    if isinstance(error, dist.DistBackendError) and "nccl" in found and not any(sign in found for sign in _NCCL_LOST):
        return BackendError(f"train: the GPUs must reach each other, got {text[-300:]}; NCCL_DEBUG=INFO says more")
    return LostContactError(
        f"train: process {rank} lost contact with the others ({text[-160:]}); the newest checkpoint is untouched, "
        "go on with --resume"
    )


def _code_of(error: BaseException) -> int:
    """Return the exit code that ``setr_fast.cli.main`` and the interpreter give a process that ends by this error."""
    if isinstance(error, SetrFastError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1


def _leave(code: int) -> None:
    """End this process without the libraries' own farewells."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_launcher() -> None:
    """Have the kernel end this process when its launcher is killed: an orphan would train on beside its successor."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was killed between the two calls
        os.kill(os.getpid(), signal.SIGKILL)
