"""Training batches whose contents depend on the seed and the step alone.

Samples are laid end to end: epoch 0 in its shuffled order, then epoch 1, and so on; step s takes the next
``batch_size`` of them, across the border of an epoch where need be. So every sample comes exactly once per epoch, no
batch is short, and step s can be made first, without the steps before it. A sample's random changes are drawn from a
stream addressed by (seed, epoch, sample), so neither ranks nor worker processes change anything.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from setr_fast.data.draws import philox
from setr_fast.data.source import Source
from setr_fast.errors import ConfigError, SetrFastError

Key = tuple[int, int]
"""Epoch and index of a sample."""

_PREFETCH = 2
"""Batches that each worker has ready or in the making."""


class Transform(Protocol):
    """Random changes to a sample, drawn from the generator given."""

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Batch:
    """One rank's share of one step.

    Shapes: image [B, 3, h, w] float32, label [B, h, w] uint8 training ids, 255 ignored; B names.
    """

    image: Tensor
    label: Tensor
    names: list[str]

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a GPU fetches it while it computes.

        Torch's loader calls this by its name, in a thread of its own.
        """
        return Batch(self.image.pin_memory(), self.label.pin_memory(), self.names)


def stream(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """Return the generator that draws the changes of one sample in one epoch."""
    return np.random.Generator(philox(seed, "augment", sample, epoch))


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.intp]:
    """Return the order of the samples in an epoch: a permutation of 0..count-1. Not to be written to."""
    order = np.argsort(philox(seed, "order", epoch).random_raw(count), kind="stable")
    order.setflags(write=False)
    return order


class Ordered(Protocol):
    """A source with an order of its own, instead of a permutation of all its samples."""

    def at(self, seed: int, epoch: int, place: int) -> int:
        """Return which sample stands at a place of an epoch: the arguments alone decide."""
        ...


def step_keys(
    step: int,
    *,
    batch_size: int,
    count: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    at: Callable[[int, int, int], int] | None = None,
) -> list[Key]:
    """Return which samples a rank gets at a step, of ``count`` in all: every ``world_size``-th of the global batch.

    ``at``: which sample stands where (``Ordered``); none: each epoch is a permutation of all.
    """
    first = step * batch_size
    places = [divmod(place, count) for place in range(first + rank, first + batch_size, world_size)]
    if at is not None:
        return [(epoch, at(seed, epoch, place)) for epoch, place in places]
    return [(epoch, int(epoch_order(seed, epoch, count)[place])) for epoch, place in places]


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Return the batches of steps ``first_step`` up to, not including, ``last_step``.

    Args:
        batch_size: samples of all ranks together.
        workers: processes that read and change the samples; 0: this one does, each batch when it is asked for.

    Raises: ConfigError if the batch does not divide among the ranks, or the source is empty; while iterating, whatever
        the source raises, from a worker as from this process.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"train.batch_size: must be a positive multiple of the number of processes ({world_size}), got {batch_size}"
        )
    if len(source) == 0:
        raise ConfigError("data: the training split must hold at least one sample, got 0")
    samples = _Samples(source, transform, seed)
    share = functools.partial(
        step_keys,
        batch_size=batch_size,
        count=len(source),
        seed=seed,
        rank=rank,
        world_size=world_size,
        at=getattr(source, "at", None),
    )
    steps = map(share, range(first_step, last_step))
    if workers == 0 or first_step >= last_step:
        return map(samples.batch, steps)
    return _from_workers(samples, list(range(first_step, last_step)), share, workers)


@dataclass(frozen=True)
class _Samples(Dataset[Batch]):
    """The samples under their keys; what the workers hold."""

    source: Source
    transform: Transform
    seed: int

    def batch(self, keys: list[Key]) -> Batch:
        """Read, change and stack samples."""
        images, labels = [], []
        for epoch, index in keys:
            image, label = self.transform(*self.source.read(index), stream(self.seed, epoch, index))
            images.append(image)
            labels.append(label)
        return Batch(torch.stack(images), torch.stack(labels), [self.source.names[index] for _, index in keys])

    def __getitems__(self, keys: list[Key]) -> Batch | SetrFastError:
        """Return a batch, or the error that explains why there is none.

        A worker's exception would reach the caller as another one that holds a page of traceback: the explained
        ones travel as values instead.
        """
        try:
            return self.batch(keys)
        except SetrFastError as error:
            return error


class _StepKeys:
    """The keys of one step after another."""

    def __init__(self, steps: list[int], share: functools.partial[list[Key]]) -> None:
        self.steps, self.share = steps, share

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        return map(self.share, self.steps)


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's: it ends its workers after its checkpoint
    torch.set_num_threads(1)  # the processes are the parallelism
    threading.Thread(target=_end_with_trainer, name="end with trainer", daemon=True).start()


def _end_with_trainer() -> None:
    """End this worker when its trainer has been killed.

    torch's own watch looks whether the parent has changed: that is the server process, which lives as long as any of
    its workers does. Each kept the other, and a few hundred megabytes, for ever.
    """
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


def _start_method() -> str:
    """Return how workers start: from a clean server process where there is one.

    Forking the trainer would copy locks that its other threads (OpenMP, autograd, CUDA) may hold at that moment,
    which hangs a worker now and then. The server loads torch once (2 to 4 s), a worker then costs a fork of it.
    Measured on 2 CPU cores (2026-11), first batch with 2 workers: 3.9 s, then 0.35 s for every later start; fork
    0.06 s, spawn 3.3 s each time. A run pays it once.
    """
    methods = multiprocessing.get_all_start_methods()
    return "forkserver" if "forkserver" in methods else "spawn"


def _start_server() -> None:
    """Start the server process so that it and its workers ignore Ctrl-C from birth: they inherit what is ignored here.

    Without this, a Ctrl-C while workers start would end them, and the run with an error instead of a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can a signal be set
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _from_workers(
    samples: _Samples, steps: list[int], share: functools.partial[list[Key]], workers: int
) -> Iterator[Batch]:
    context = multiprocessing.get_context(_start_method())
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["torch", __name__])
        _start_server()
    loader: DataLoader[Batch] = DataLoader(
        samples,
        batch_sampler=_StepKeys(steps, share),
        num_workers=min(workers, len(steps)),
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        prefetch_factor=_PREFETCH,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader draws its workers' seed from the global generator
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, SetrFastError):
                raise batch
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as error:
        # Also a broken connection: the worker was gone before its last batch had been fetched from it.
        if type(error) is RuntimeError and "exited unexpectedly" not in str(error):
            raise
        raise SetrFastError(
            f"data: a worker process ended, {' '.join(str(error).split())}; fewer --data.workers need less memory"
        ) from error
    finally:
        end = getattr(batches, "_shutdown_workers", None)
        if end is not None:
            end()  # at once: a traceback (of Ctrl-C, say) may hold the iterator, whose end they would wait for
