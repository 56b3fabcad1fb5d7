"""Writing checkpoints beside the training: copied to the CPU at once, written by a thread, published as a whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from setr_fast.errors import BackendError
from setr_fast.files import sync_folder
from setr_fast.models.model import SegmentationModel
from setr_fast.models.store import write_model
from setr_fast.train.checkpoint import FORMAT, ROOT, SHARDS, STATE, Progress, complete, of_ranks
from setr_fast.train.ranks import Ranks
from setr_fast.train.storage import Writer


class Saver:
    """Writes one checkpoint at a time, by every rank together; ``folder`` is the run's ``checkpoints``.

    All methods are collectives. A failure is raised, as one line, by the next ``start`` or ``finish`` of every rank;
    ``failed`` tells this rank's loop earlier.
    """

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int, wait: bool) -> None:
        self.folder, self.ranks, self.keep, self.wait = folder, ranks, keep, wait
        # Saves run beside the training's own collectives: a group of their own keeps the two apart.
        self.group = ranks.group()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copies = _Copies()
        self._model: tuple[dict[str, Tensor], SegmentationModel] | None = None
        """Copies, and the model that is made of them."""

    @property
    def failed(self) -> bool:
        """Whether a save that was running has failed on this rank."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def start(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Copy the tensors and begin to write them; they may be changed as soon as this returns."""
        self.finish()
        temporary = self.folder / f".writing-step_{progress.step:08d}"
        if self.ranks.is_first:
            for left in self.folder.glob(".writing-*"):  # of a run that was killed while it wrote
                shutil.rmtree(left, ignore_errors=True)
        if self.ranks.any(not _made(temporary / SHARDS, self.ranks.is_first)):
            raise BackendError(f"{self.folder}: cannot be written; make it writable, then go on with --resume")
        written = dcp.async_save(
            {ROOT: tensors},
            storage_writer=Writer(temporary / SHARDS),
            process_group=self.group,
            no_dist=self.ranks.world_size == 1,
            async_stager=self._copies,
        )
        assert isinstance(written, Future)
        if self.ranks.is_first:
            self._pending = self._thread.submit(self._publish, written, temporary, self._copies.tensors, progress)
        else:
            self._pending = self._thread.submit(written.result)
        if self.wait:
            self.finish()

    def finish(self) -> None:
        """Wait for the save that is running, on every rank, and raise what went wrong with it."""
        if self._pending is None:
            return
        try:
            self._pending.result()
            failure = None
        except (Exception, CheckpointException) as error:  # the latter is a BaseException
            failure = _reason(error)
        self._pending = None
        reasons = [r for r in self.ranks.every(failure) if r is not None]
        if reasons:
            if self.ranks.is_first:
                for left in self.folder.glob(".writing-*"):
                    shutil.rmtree(left, ignore_errors=True)
            failed = BackendError(
                f"{self.folder}: a checkpoint could not be written ({min(reasons, key=len)}); those before it are "
                "untouched, make room and go on with --resume"
            )
            raise self.ranks.by_one_voice(failed)

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=True)

    def _publish(self, written: Future[Any], temporary: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Complete the folder, put it under its name, delete all but the newest ``keep``."""
        written.result()
        if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
            if self._model is None or self._model[0] is not tensors:
                self._model = tensors, model_of(tensors, progress)
            write_model(self._model[1], temporary)
        sizes = {str(p.relative_to(temporary)): p.stat().st_size for p in sorted(temporary.rglob("*")) if p.is_file()}
        facts = {
            "format": FORMAT,
            "step": progress.step,
            "best_miou": progress.best_miou,
            "config": progress.config,
            "spec": progress.spec.to_dict(),
            "torch": torch.__version__,
            "world_size": self.ranks.world_size,
            "files": sizes,
        }
        (temporary / STATE).write_text(json.dumps(facts, indent=1))
        for path in [*_model_files(temporary), temporary / STATE]:  # DCP has synced its own
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(temporary / SHARDS)
        sync_folder(temporary)
        target = self.folder / f"step_{progress.step:08d}"
        if target.exists():  # damaged, or its steps were done again
            shutil.rmtree(target)
        os.rename(temporary, target)
        sync_folder(self.folder)
        for old in complete(self.folder)[: -self.keep]:
            shutil.rmtree(old)


class _Copies(AsyncStager):
    """Copies to the CPU before the step goes on; later saves copy into the same memory, which the system has given."""

    _synchronize_after_execute = False

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        now: dict[str, Tensor] = state_dict[ROOT]
        if {k: t.shape for k, t in now.items()} == {k: t.shape for k, t in self.tensors.items()}:
            torch._foreach_copy_([_local(t) for t in self.tensors.values()], [_local(now[k]) for k in self.tensors])
        else:  # the first time, or the optimiser's state has come since
            stager = DefaultStager(StagingOptions(False, False, False, False))
            staged = stager.stage(state_dict)
            self.tensors = (staged.result() if isinstance(staged, Future) else staged)[ROOT]
            stager.close()
        return {ROOT: self.tensors}

    def synchronize_staging(self) -> None:
        """Do nothing: ``stage`` returns when the copies are there."""

    def close(self) -> None:
        """Do nothing: memory goes with the object."""


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def model_of(tensors: dict[str, Tensor], progress: Progress) -> SegmentationModel:
    """Return the model of a checkpoint's full tensors: averaged weights where there are any."""
    kind = "average/" if any(key.startswith("average/") for key in tensors) else "weights/"
    state = {k.removeprefix(p): t for p in (kind, "buffers/") for k, t in tensors.items() if k.startswith(p)}
    with torch.device("meta"):
        model = SegmentationModel(progress.spec)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _model_files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.is_file() and p.name != STATE)


def _made(folder: Path, first: bool) -> bool:
    if not first:
        return True
    try:
        folder.mkdir(parents=True)
    except OSError:
        return False
    return True


def _reason(error: BaseException) -> str:
    """Return in words why a save failed: the operating system's own where it was that."""
    seen: list[BaseException] = [error]
    causes: list[BaseException] = [error]
    while causes:
        now = causes.pop()
        if isinstance(now, OSError) and now.errno is not None:
            return os.strerror(now.errno)
        inner = [now.__cause__, now.__context__, *of_ranks(now)]
        causes += [e for e in inner if isinstance(e, BaseException) and e not in seen]
        seen += causes
    text = " ".join(str(error).split())
    full = os.strerror(errno.ENOSPC)
    return full if full in text else text[-200:]
