"""From a configuration to a finished run: processes, run folder, checks before the first step, the closing line."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from setr_fast.config import Config, to_dict, to_toml
from setr_fast.data.check import verify
from setr_fast.data.source import Source, open_source
from setr_fast.data.transforms import TrainTransform
from setr_fast.errors import BackendError, ConfigError
from setr_fast.files import atomic_write
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.train import checkpoint
from setr_fast.train.loop import Training, train
from setr_fast.train.ranks import Ranks, joined


def run(config: Config, argv: list[str]) -> int:
    """Train as configured; start one process per GPU first where that was not done yet."""
    processes = config.nproc or max(1, torch.cuda.device_count())
    if "RANK" not in os.environ and processes > 1:
        _start_processes(processes, config, argv)  # does not return
    with joined(group=config.fsdp) as ranks:
        run_dir = _run_folder(config)
        resume_from = _resume_point(config, run_dir)
        scores = train(_prepare(config, run_dir, ranks), ranks, fsdp=config.fsdp, resume_from=resume_from)
        if ranks.is_first:
            print(
                f"mIoU {scores['mIoU']:.4f}  best mIoU {scores['best_mIoU']:.4f}  checkpoint {scores['checkpoint']}",
                flush=True,
            )
    return 0


def _start_processes(processes: int, config: Config, argv: list[str]) -> None:
    """Replace this process by torch's elastic launcher, which runs the same command in every rank."""
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise BackendError(f"nproc: must be at most {torch.cuda.device_count()}, the GPUs here, got {processes}")
    run_dir = [] if config.run_dir else ["--run-dir", str(_default_run_dir(config))]  # one name for all ranks
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "setr_fast.train", *_without_nproc(argv), *run_dir])


def _without_nproc(argv: list[str]) -> list[str]:
    """Drop ``--nproc N``: the launcher would take it for an abbreviation of its own option."""
    kept, arguments = [], iter(argv)
    for argument in arguments:
        if argument == "--nproc":
            next(arguments, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


def _prepare(config: Config, run_dir: Path, ranks: Ranks) -> Training:
    """Verify and open the data, build the model, make the run folder."""
    splits = [config.data.train_split, config.data.val_split]
    if ranks.is_first:
        verify(config.data, splits, level=config.data.check)
    ranks.barrier()
    sources = [open_source(config.data, split) for split in splits]
    if sources[0].classes.names != sources[1].classes.names:
        raise ConfigError("data: both splits must have the same classes")
    model = _build(config, sources[0]).to(ranks.device)
    plain = _build(config, sources[0]).to(ranks.device) if config.fsdp or config.train.ema else model
    if config.model.start is not None and not config.resume:
        checkpoint.start_weights(model, config.model.start)
    if ranks.is_first:
        _make_run_folder(config, run_dir)  # last of all: what fails before this leaves nothing behind
    ranks.barrier()
    return Training(
        model=model,
        plain=plain,
        train_source=sources[0],
        val_source=sources[1],
        optim=config.optim,
        config=config.train,
        inference=config.inference,
        augment=TrainTransform(config.augment, model.spec.mean, model.spec.std),
        workers=_workers(config, ranks),
        run_dir=run_dir,
        settings=to_dict(config),
    )


def _workers(config: Config, ranks: Ranks) -> int:
    """A CPU's cores are busy with the network; with a GPU they are free, and shared by the trainers of this host."""
    if config.data.workers is not None:
        return config.data.workers
    if ranks.device.type == "cpu":
        return 0
    trainers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, (os.cpu_count() or 1) // trainers))


def _build(config: Config, source: Source) -> SegmentationModel:
    torch.manual_seed(config.train.seed)
    classes = source.classes
    rule: dict[str, Any] = {"resize_short": config.inference.resize_short}  # eval and predict then do as validation did
    if config.inference.mode != "auto":
        rule["inference_mode"] = config.inference.mode
    return create_model(
        config.model.name,
        num_classes=classes.num_classes,
        image_size=config.augment.crop,
        class_names=classes.names,
        palette=classes.palette,
        **rule,
        **config.model.overrides(),
    )


def _run_folder(config: Config) -> Path:
    """Return the run folder's path; a run that is already there is neither overwritten nor mixed up with this one."""
    if config.resume and config.run_dir is None:
        raise ConfigError("resume: needs --run-dir, the folder of the run to go on with")
    run_dir = config.run_dir or _default_run_dir(config)
    if not config.resume and (run_dir / "config.toml").exists():
        raise ConfigError(f"run_dir: {run_dir} already holds a run; give --resume or another --run-dir")
    return run_dir


def _make_run_folder(config: Config, run_dir: Path) -> None:
    try:
        for name in ("checkpoints", "overlays"):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
        if not config.resume:
            atomic_write(run_dir / "config.toml", to_toml(config))
    except OSError as error:
        raise BackendError(f"run_dir: {run_dir} cannot be written ({error.strerror}); give another --run-dir") from None


def _resume_point(config: Config, run_dir: Path) -> Path | None:
    if not config.resume:
        return None
    found = checkpoint.complete(run_dir / "checkpoints")
    if not found:
        raise ConfigError(f"resume: {run_dir} holds no complete checkpoint; start anew with another --run-dir")
    return found[-1]


def _default_run_dir(config: Config) -> Path:
    data = config.data.root.resolve().name if config.data.root else "builtin"
    return Path("runs") / f"{config.model.name}-{data}-{time.strftime('%Y%m%d-%H%M%S')}"
