"""The training loop: data in, steps, validation, checkpoints, pictures."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from setr_fast.data.loader import Batch, train_batches
from setr_fast.data.source import Source
from setr_fast.data.transforms import TrainTransform
from setr_fast.engine.evaluator import evaluate
from setr_fast.engine.gallery import write_gallery
from setr_fast.engine.options import InferenceConfig
from setr_fast.errors import DivergedError, SetrFastError
from setr_fast.files import atomic_folder
from setr_fast.models.model import SegmentationModel
from setr_fast.models.store import write_model
from setr_fast.train import checkpoint
from setr_fast.train.average import Average
from setr_fast.train.optimizer import build_optimizer, set_learning_rate
from setr_fast.train.options import OptimConfig, TrainConfig
from setr_fast.train.ranks import Ranks
from setr_fast.train.reporter import Reporter


@dataclass
class Training:
    """One run's parts; ``train`` moves it forward."""

    model: SegmentationModel
    plain: SegmentationModel
    """Unsharded model that is validated and saved; ``model`` itself where nothing is sharded or averaged."""
    train_source: Source
    val_source: Source
    optim: OptimConfig
    config: TrainConfig
    inference: InferenceConfig
    augment: TrainTransform
    workers: int
    run_dir: Path
    settings: dict[str, Any]
    """The resolved configuration, as saved with every checkpoint."""


class Interrupted(SetrFastError):
    """A run was asked to stop; its state is saved."""

    exit_code = 130


def train(run: Training, ranks: Ranks, *, fsdp: bool, resume_from: Path | None) -> dict[str, Any]:
    """Train to the last step and return the final scores with ``checkpoint``, the best model's folder."""
    config, model = run.config, run.model
    step_loss = shard(model, ranks) if fsdp else _replicate(model, ranks)
    state = _State(model, build_optimizer(model, run.optim), Average(model, config.ema) if config.ema else None)
    if resume_from is not None:
        state.restore(resume_from)
    validate_every = config.validate_every or math.ceil(config.steps / 5)
    save_every = config.save_every or validate_every
    reporter = Reporter(
        run.run_dir,
        steps=config.steps,
        first_step=state.step,
        batch_size=config.batch_size,
        log_every=config.log_every,
        speaks=ranks.is_first,
        tensorboard=config.tensorboard,
    )
    scores: dict[str, Any] = {}
    with reporter, _stop_requests() as stop:
        started = time.perf_counter()
        for batch in _batches(run, ranks, state.step):
            lr = set_learning_rate(state.optimizer, state.step, config.steps, run.optim)
            torch.manual_seed(_mix(config.seed, state.step, ranks.rank))  # dropout: the same after a resume
            loss = _step(model, step_loss, state.optimizer, batch, config, ranks)
            state.advance()
            reporter.step(state.step, loss, lr, time.perf_counter() - started)
            last = state.step == config.steps
            stopping = ranks.any(bool(stop)) and not last
            validating = (last or state.step % validate_every == 0) and not stopping
            saving = last or stopping or state.step % save_every == 0
            tensors = _publish(run, state, ranks) if validating or saving else {}
            if validating:
                scores = _validate(run, state, ranks, reporter)
            if saving and ranks.is_first:
                place = checkpoint.Progress(state.step, state.best_miou, run.settings)
                checkpoint.save(run.run_dir / "checkpoints", tensors, run.plain, place, keep=config.keep)
            if stopping:
                ranks.barrier()
                raise Interrupted(
                    f"stopped after step {state.step} of {config.steps}, state saved; "
                    f"go on with: python -m setr_fast.train --run-dir {run.run_dir} --resume"
                )
            started = time.perf_counter()  # validation and saving are not training time
        if not scores:  # resumed after the last step
            _publish(run, state, ranks)
            scores = _validate(run, state, ranks, reporter)
    return scores | {"best_mIoU": state.best_miou, "checkpoint": str(run.run_dir / "best")}


@dataclass
class _State:
    """What changes from step to step; ``step`` is the number of steps done."""

    model: SegmentationModel
    optimizer: torch.optim.Optimizer
    average: Average | None
    step: int = 0
    best_miou: float = -1.0

    def restore(self, saved: Path) -> None:
        tensors, progress = checkpoint.read(saved)
        checkpoint.restore(tensors, self.model, self.optimizer, self.average)
        self.step, self.best_miou = progress.step, progress.best_miou

    def advance(self) -> None:
        if self.average is not None:
            self.average.update(self.model, self.step)
        self.step += 1


def _batches(run: Training, ranks: Ranks, first_step: int) -> Iterator[Batch]:
    return train_batches(
        run.train_source,
        run.augment,
        batch_size=run.config.batch_size,
        seed=run.config.seed,
        first_step=first_step,
        last_step=run.config.steps,
        rank=ranks.rank,
        world_size=ranks.world_size,
        workers=run.workers,
    )


def shard(model: SegmentationModel, ranks: Ranks) -> nn.Module:
    """Shard every encoder block, then the rest, over all ranks (FSDP2); return the module that gives the loss."""
    mesh = torch.distributed.init_device_mesh(ranks.device.type, (ranks.world_size,))
    for block in model.encoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("loss", "logits", "all_logits"):
        register_fsdp_forward_method(model, method)
    return _Loss(model)


class _Loss(nn.Module):
    """The loss as a forward pass, which is what DistributedDataParallel and autocast wrap."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_B3HW: Tensor, label_BHW: Tensor) -> Tensor:
        return self.model.loss(image_B3HW, label_BHW)


def _replicate(model: SegmentationModel, ranks: Ranks) -> nn.Module:
    loss = _Loss(model)
    return DistributedDataParallel(loss, broadcast_buffers=False) if ranks.world_size > 1 else loss


def _step(
    model: SegmentationModel,
    step_loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    ranks: Ranks,
) -> float:
    """Take one optimiser step and return the loss, averaged over parts and ranks."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    images = batch.image.to(ranks.device, non_blocking=True)
    labels = batch.label.to(ranks.device, non_blocking=True)
    parts = min(config.accumulate, len(images))
    total = torch.zeros((), device=ranks.device)
    autocast = torch.autocast(ranks.device.type, torch.bfloat16) if _bf16(config, ranks) else nullcontext()
    for part in range(parts):
        chosen = slice(part * len(images) // parts, (part + 1) * len(images) // parts)
        share = (chosen.stop - chosen.start) / len(images)
        with autocast:
            loss = step_loss(images[chosen], labels[chosen]) * share
        loss.backward()
        total += loss.detach().float()
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    value = float(ranks.mean(total))
    if not math.isfinite(value):
        raise DivergedError(
            f"train: the loss is {value} on {', '.join(batch.names)}; the newest checkpoint is untouched, "
            "lower --optim.lr or set --train.precision fp32"
        )
    optimizer.step()
    return value


def _bf16(config: TrainConfig, ranks: Ranks) -> bool:
    if config.precision == "auto":
        return has_fast_bf16(ranks.device)
    return config.precision == "bf16"


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether this device multiplies bf16 matrices in hardware faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # younger than the oldest torch we take
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def _publish(run: Training, state: _State, ranks: Ranks) -> dict[str, Tensor]:
    """Bring the unsharded model up to date and return all tensors in full (a collective).

    It gets averaged weights where there are any, and batch statistics averaged over all ranks.
    """
    with torch.no_grad():  # every rank goes on from the mean too, so that a resumed run has what this one has
        for buffer in filter(torch.is_floating_point, state.model.buffers()):
            buffer.copy_(ranks.mean(buffer))
    tensors = checkpoint.gather(state.model, state.optimizer, state.average)
    kind = "weights" if state.average is None else "average"
    with torch.no_grad():
        for name, parameter in run.plain.named_parameters():
            if run.plain is not run.model:
                parameter.copy_(tensors[f"{kind}/{name}"])
        for name, buffer in run.plain.named_buffers():
            buffer.copy_(tensors[f"buffers/{name}"])
    return tensors


def _validate(run: Training, state: _State, ranks: Ranks, reporter: Reporter) -> dict[str, Any]:
    """Score the published model on the validation split and keep it if it is the best so far."""
    scores = evaluate(run.plain, run.val_source, run.inference, rank=ranks.rank, world_size=ranks.world_size)
    result = scores.as_dict(run.val_source.classes.names)
    reporter.validation(state.step, result)
    if result["mIoU"] > state.best_miou:
        state.best_miou = result["mIoU"]
        if ranks.is_first:
            _save_best(run, result, state.step)
    return result


def _save_best(run: Training, scores: dict[str, Any], step: int) -> None:
    import json

    with atomic_folder(run.run_dir / "best") as folder:
        write_model(run.plain, folder)
        (folder / "scores.json").write_text(json.dumps({"step": step, **scores}, indent=2))
    write_gallery(run.plain, run.val_source, run.inference, run.run_dir / "overlays", count=run.config.overlays)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; the loop looks after every step. A second signal interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and "TORCHELASTIC_RUN_ID" not in os.environ:  # a launcher passes the terminal's signal on
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield received
        return
    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mix(seed: int, step: int, rank: int) -> int:
    """Return one 63-bit seed for (seed, step, rank); neighbours differ in about half their bits."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    value ^= value >> 31
    return (value * 0xD6E8FEB86659FD93 & (2**64 - 1)) >> 1
