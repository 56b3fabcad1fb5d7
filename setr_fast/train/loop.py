"""The training loop: data in, steps, validation, checkpoints, pictures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from setr_fast.data.loader import Batch, train_batches
from setr_fast.data.source import Source
from setr_fast.data.transforms import TrainTransform
from setr_fast.engine.evaluator import evaluate
from setr_fast.engine.gallery import write_gallery
from setr_fast.engine.options import InferenceConfig
from setr_fast.files import atomic_folder
from setr_fast.models.model import SegmentationModel
from setr_fast.models.store import BEST, write_model
from setr_fast.train import checkpoint
from setr_fast.train.average import Average
from setr_fast.train.devices import peak_flops
from setr_fast.train.memory import profile_step
from setr_fast.train.optimizer import build_optimizer, set_learning_rate
from setr_fast.train.options import OptimConfig, TrainConfig
from setr_fast.train.ranks import Ranks
from setr_fast.train.reporter import Reporter
from setr_fast.train.saver import Saver
from setr_fast.train.signals import STOPS, stop_requests
from setr_fast.train.step import MOST_SKIPPED, Outcome, diverged, take_step, uses_bf16


@dataclass
class Training:
    """One run's parts; ``train`` moves it forward."""

    model: SegmentationModel
    step_loss: nn.Module
    """``model``'s loss as the ranks compute it together."""
    plain: SegmentationModel
    """Unsharded model that is validated; ``model`` itself where nothing is sharded or averaged."""
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


@dataclass
class _State:
    """What changes from step to step; ``step`` is the number of steps done."""

    model: SegmentationModel
    optimizer: torch.optim.Optimizer
    average: Average | None
    step: int = 0
    best_miou: float = -1.0
    skipped: int = 0
    """Steps in a row that were skipped."""

    def restore(self, saved: Path) -> None:
        progress = checkpoint.read_progress(saved)
        checkpoint.restore(saved, self.model, self.optimizer, self.average)
        self.step, self.best_miou = progress.step, progress.best_miou

    def advance(self, taken: bool) -> None:
        if self.average is not None and taken:
            self.average.update(self.model, self.step)
        self.skipped = 0 if taken else self.skipped + 1
        self.step += 1


def train(run: Training, ranks: Ranks, *, resume_from: Path | None) -> dict[str, Any]:
    """Train to the last step and return the final scores with ``checkpoint``, the best model's folder."""
    config, model = run.config, run.model
    state = _State(model, build_optimizer(model, run.optim), Average(model, config.ema) if config.ema else None)
    if resume_from is not None:
        state.restore(resume_from)
    validate_every = config.validate_every or math.ceil(config.steps / 5)
    save_every = config.save_every or validate_every
    scores: dict[str, Any] = {}
    saver = Saver(run.run_dir / "checkpoints", ranks, keep=config.keep, wait=config.save == "wait")
    try:
        with _reporter(run, ranks, state.step) as reporter, stop_requests() as stop:
            reporter.line(_opening(run, ranks, state.step))
            started = time.perf_counter()
            for batch in _batches(run, ranks, state.step):
                waited = time.perf_counter() - started
                lr = set_learning_rate(state.optimizer, state.step, config.steps, run.optim)
                outcome = take_step(model, run.step_loss, state.optimizer, batch, config, ranks, state.step)
                if not outcome.finite:
                    _note_divergence(run, batch, outcome, state, ranks)
                state.advance(outcome.finite)
                reporter.step(state.step, outcome.loss, outcome.accuracy, lr, time.perf_counter() - started, waited)
                last = state.step == config.steps
                # One collective for two questions: was any rank told to stop (the signal's number), did a save fail?
                told = int(ranks.most(1000 if saver.failed else max(stop, default=0)))
                if told == 1000:
                    saver.finish()
                stopping = told != 0 and not last
                if (last or state.step % validate_every == 0) and not stopping:
                    _publish(run, state)
                    scores = _validate(run, state, ranks, reporter)
                if last or stopping or state.step % save_every == 0:
                    progress = checkpoint.Progress(state.step, state.best_miou, run.settings, model.spec)
                    started = time.perf_counter()
                    saver.start(checkpoint.tensors_of(model, state.optimizer, state.average), progress)
                    reporter.saving(time.perf_counter() - started)
                if stopping:
                    saver.finish()
                    stopped = STOPS[told](
                        f"stopped after step {state.step} of {config.steps}, state saved; "
                        f"go on with: python -m setr_fast.train --run-dir {run.run_dir} --resume"
                    )
                    raise ranks.by_one_voice(stopped)
                started = time.perf_counter()  # validation and saving are not training time
            if not scores:  # resumed after the last step
                _publish(run, state)
                scores = _validate(run, state, ranks, reporter)
        saver.finish()
    finally:
        saver.close()
    return scores | {"best_mIoU": state.best_miou, "checkpoint": str(run.run_dir / BEST)}


def _opening(run: Training, ranks: Ranks, step: int) -> str:
    """Return what a run is, in a line: it is read while the first step takes its time."""
    values = sum(p.numel() for p in run.model.parameters()) / 1e6
    whom = f"{ranks.world_size} processes" if ranks.world_size > 1 else "one process"
    whom += f" of {torch.get_num_threads()} threads" if ranks.device.type == "cpu" else ""
    data = f"{len(run.train_source)} pictures to train on, {len(run.val_source)} to validate"
    begun = f"going on after step {step}; " if step else ""
    model = f"{run.model.spec.name} with {values:.1f} million weights"
    return f"{begun}{model}; {data}; {ranks.device.type}, {whom}; run folder {run.run_dir}"


def _reporter(run: Training, ranks: Ranks, first_step: int) -> Reporter:
    config, half = run.config, uses_bf16(run.config, ranks)
    peak = peak_flops(ranks.device, half=half, stated_tflops=config.peak_tflops) * ranks.world_size
    work = 0.0
    if peak and ranks.is_first:  # what recomputation does twice is no use to the model: counted once
        one = profile_step(run.model.spec, 1, replace(config, recompute="none", accumulate=1), bf16=half)
        work = float(one.flops * config.batch_size)
    return Reporter(
        run.run_dir,
        steps=run.config.steps,
        first_step=first_step,
        batch_size=run.config.batch_size,
        log_every=run.config.log_every,
        speaks=ranks.is_first,
        tensorboard=run.config.tensorboard,
        step_flops=work,
        peak_flops=peak,
    )


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


def _note_divergence(run: Training, batch: Batch, outcome: Outcome, state: _State, ranks: Ranks) -> None:
    """Write down which samples gave no finite step; raise DivergedError unless it may be skipped."""
    record, error = diverged(batch, outcome, state.step, ranks)
    if ranks.is_first:
        with (run.run_dir / "diverged.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    if run.config.on_nan == "stop" or state.skipped + 1 >= MOST_SKIPPED:
        raise ranks.by_one_voice(error)


@torch.no_grad()
def _publish(run: Training, state: _State) -> None:
    """Bring the unsharded model up to date: averaged weights where there are any (a collective)."""
    if run.plain is run.model:
        return
    plain = dict(run.plain.named_parameters())
    for name, parameter in run.model.named_parameters():
        plain[name].copy_(checkpoint.whole(parameter if state.average is None else state.average.weights[name]))
    buffers = dict(run.plain.named_buffers())
    for name, buffer in run.model.named_buffers():
        buffers[name].copy_(buffer)


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
    with atomic_folder(run.run_dir / BEST) as folder:
        write_model(run.plain, folder)
        (folder / "scores.json").write_text(json.dumps({"step": step, **scores}, indent=2))
    write_gallery(run.plain, run.val_source, run.inference, run.run_dir / "overlays", count=run.config.overlays)
