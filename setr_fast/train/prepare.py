"""What a run needs before its first step: verified data, the model, how it is spread."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from setr_fast.checkpoints.transfer import start_from
from setr_fast.config import Config, to_dict
from setr_fast.data.balance import by_sampling
from setr_fast.data.checks.check import verify
from setr_fast.data.classes import ClassTable
from setr_fast.data.source import Source, open_source
from setr_fast.data.transforms import TrainTransform
from setr_fast.errors import ConfigError
from setr_fast.models.catalog import model_spec
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.ops import _native
from setr_fast.train.criterion import build_criterion
from setr_fast.train.early import refuse_early
from setr_fast.train.loop import Training
from setr_fast.train.parallel import fill, spread
from setr_fast.train.ranks import Ranks, by_first
from setr_fast.train.step import uses_bf16

logger = logging.getLogger("setr_fast")

VERIFIED = "SETR_FAST_DATA_IS_VERIFIED"
"""Set for the processes that a run starts once their data has been verified."""


def prepare(config: Config, run_dir: Path, ranks: Ranks) -> Training:
    """Verify and open the data, build the model and spread it; write nothing yet."""
    if ranks.is_first and (missing := _native.reason()):
        logger.warning("%s; training runs on PyTorch alone", missing)
    classes = by_first(ranks, lambda: _verified_classes(config))
    sources = [open_source(config.data, split, classes) for split in splits_of(config)]
    sources[0] = by_sampling(config.data, sources[0])
    if sources[0].classes.names != sources[1].classes.names:
        raise ConfigError("data: both splits must have the same classes")
    model, plain = _models(config, sources[0], ranks)
    refuse_early(model, config, ranks)
    bf16 = uses_bf16(config.train, ranks)
    criterion = build_criterion(config.loss, model.spec.num_classes)
    step_loss = spread(model, ranks, config.train, config.parallel, fsdp=config.fsdp, bf16=bf16, criterion=criterion)
    if config.fsdp:
        fill(model, plain, ranks)
    return Training(
        model=model,
        step_loss=step_loss,
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


def splits_of(config: Config) -> list[str]:
    """Return the splits that a run reads: to train on, to validate on."""
    return [config.data.train_split, config.data.val_split]


def _models(config: Config, source: Source, ranks: Ranks) -> tuple[SegmentationModel, SegmentationModel]:
    """Return the model to train and the one to validate.

    With FSDP the former starts on the meta device and only the first rank's other one has values: no rank but that
    ever makes a whole model's random numbers, and ``fill`` deals them out.
    """
    if not config.fsdp:
        model = _started(config, source).to(ranks.device)
        return model, (_build(config, source).to(ranks.device) if config.train.ema else model)
    with torch.device("meta"):
        model, plain = _build(config, source), _build(config, source)
    if ranks.is_first:
        return model, _started(config, source).to(ranks.device)
    return model, plain.to_empty(device=ranks.device)


def _started(config: Config, source: Source) -> SegmentationModel:
    model = _build(config, source)
    if config.model.start is not None and not config.resume:
        start_from(model, config.model.start, config.model.reinit_head, config.model.extra_channels)
    return model


def _build(config: Config, source: Source) -> SegmentationModel:
    torch.manual_seed(config.train.seed)
    classes = source.classes
    rule: dict[str, Any] = {"resize_short": config.inference.resize_short}  # eval and predict then do as validation did
    if config.inference.mode != "auto":
        rule["inference_mode"] = config.inference.mode
    model = create_model(
        config.model.name,
        num_classes=classes.num_classes,
        image_size=config.augment.crop,
        class_names=classes.names,
        palette=classes.palette,
        **{**rule, **config.model.overrides(), **_channels(config)},
    )
    if config.model.freeze_encoder:
        model.encoder.requires_grad_(False)
    return model


def _channels(config: Config) -> dict[str, Any]:
    """Return what a model of more than three channels has of its own: how many, and their mean and deviation."""
    data, further = config.data, config.data.channels - 3
    if further == 0:
        return {}
    colours = model_spec(config.model.name, 2, config.augment.crop, **config.model.overrides())
    mean, std = (values * (further // len(values)) for values in (data.extra_mean, data.extra_std))
    return {"in_chans": data.channels, "mean": colours.mean + mean, "std": colours.std + std}


def _verified_classes(config: Config) -> ClassTable | None:
    """Verify the data and return the classes it found, if it looked."""
    report = verify(config.data, splits_of(config), level="off" if VERIFIED in os.environ else config.data.check)
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
