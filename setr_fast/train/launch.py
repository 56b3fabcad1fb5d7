"""From a configuration to a finished run: processes, run folder, checks before the first step, the closing line."""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from setr_fast.config import Config, to_dict, to_toml
from setr_fast.data.check import verify
from setr_fast.data.classes import ClassTable
from setr_fast.data.source import Source, open_source
from setr_fast.data.transforms import TrainTransform
from setr_fast.errors import EXIT_DATA, EXIT_INTERRUPTED, EXIT_OK, BackendError, ConfigError, SetrFastError
from setr_fast.files import atomic_write
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.ops import _native
from setr_fast.train import checkpoint
from setr_fast.train.loop import Training, train
from setr_fast.train.ranks import Ranks, joined

logger = logging.getLogger("setr_fast")

VERIFIED = "SETR_FAST_DATA_IS_VERIFIED"
"""Set for the processes that a run starts once their data has been verified."""


def run(config: Config, argv: list[str]) -> int:
    """Train as configured and return the exit code; start one process per GPU first where that was not done yet."""
    processes = config.nproc or max(1, torch.cuda.device_count())
    if "RANK" not in os.environ and processes > 1:
        return _run_processes(processes, config, argv)
    with joined(group=config.fsdp) as ranks:
        run_dir = _run_folder(config)
        resume_from = _resume_point(config, run_dir)
        scores = train(_prepare(config, run_dir, ranks), ranks, fsdp=config.fsdp, resume_from=resume_from)
        if ranks.is_first:
            best = f"best mIoU {scores['best_mIoU']:.4f}  checkpoint {scores['checkpoint']}"
            print(f"mIoU {scores['mIoU']:.4f}  {best}", flush=True)
    return EXIT_OK


def _run_processes(processes: int, config: Config, argv: list[str]) -> int:
    """Run the same command in several processes by torch's elastic launcher; return the first failure's exit code."""
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise BackendError(f"nproc: must be at most {torch.cuda.device_count()}, the GPUs here, got {processes}")
    run_dir = _run_folder(config)  # what is wrong with folder or data is said once, before there are processes
    _resume_point(config, run_dir)
    verify(config.data, _splits(config), level=config.data.check)
    os.environ[VERIFIED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        metrics_cfg={},
    )
    folder = [] if config.run_dir else ["--run-dir", str(run_dir)]  # one name for all ranks
    arguments = ["-m", "setr_fast.train", *_without_nproc(argv), *folder]
    try:
        elastic_launch(launcher, sys.executable)(*arguments)
    except ChildFailedError as error:
        return max(error.get_first_failure()[1].exitcode, 1)  # negative: killed by a signal
    except SignalException:
        return EXIT_INTERRUPTED
    return EXIT_OK


def _without_nproc(argv: list[str]) -> list[str]:
    """Drop ``--nproc N``, which is done."""
    kept, arguments = [], iter(argv)
    for argument in arguments:
        if argument == "--nproc":
            next(arguments, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


def _prepare(config: Config, run_dir: Path, ranks: Ranks) -> Training:
    """Verify and open the data, build the model, make the run folder."""
    if ranks.is_first and (missing := _native.reason()):
        logger.warning("%s; training runs on PyTorch alone", missing)
    splits = _splits(config)
    classes = _verified_classes(config, splits, ranks)
    sources = [open_source(config.data, split, classes) for split in splits]
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


def _splits(config: Config) -> list[str]:
    return [config.data.train_split, config.data.val_split]


def _verified_classes(config: Config, splits: list[str], ranks: Ranks) -> ClassTable | None:
    """Verify the data in one process and return the classes it found; the others leave quietly if that fails."""
    report, failure = None, None
    if ranks.is_first:
        try:
            report = verify(config.data, splits, level="off" if VERIFIED in os.environ else config.data.check)
        except SetrFastError as error:
            failure = error
    if ranks.any(failure is not None):
        raise failure or SystemExit(EXIT_DATA)
    if report is None:
        return None
    _warn_about_scale(config, max((f.largest for f in report.splits), key=min, default=(0, 0)))
    return report.classes


def _warn_about_scale(config: Config, largest: tuple[int, int]) -> None:
    """Crops that are a small part of a picture show no context, and validation takes many windows per picture."""
    seen = min(largest) > 4 * max(config.augment.crop)
    if seen and config.augment.base_scale is None and config.inference.resize_short is None:
        logger.warning(
            "pictures of up to %d x %d are trained on in crops of %d x %d; --augment.base-scale and "
            "--inference.resize-short make them smaller first (--recipe folder_tiny does both)",
            *reversed(largest),
            *reversed(config.augment.crop),
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
    """Make the folder and write down the configuration, as it is from here on where the run is resumed with another."""
    data = replace(
        config.data,
        root=config.data.root and config.data.root.resolve(),
        classes=config.data.classes and config.data.classes.resolve(),
    )
    try:
        for name in ("checkpoints", "overlays"):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
        atomic_write(
            run_dir / "config.toml", to_toml(replace(config, data=data, resume=False, run_dir=None, nproc=None))
        )
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
