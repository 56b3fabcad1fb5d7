"""The loss that a configuration asks for, as one function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ConfigError
from setr_fast.loss import LossAndAccuracy, dice_loss, focal_loss, lovasz_loss, ohem_loss
from setr_fast.ops import upsample_cross_entropy
from setr_fast.train.options import LossConfig

Criterion = Callable[..., LossAndAccuracy]


def build_criterion(config: LossConfig, num_classes: int) -> Criterion:
    """Return what ``SegmentationModel.loss_and_accuracy`` judges a head by.

    Raises: ConfigError when there are not as many class weights as classes.
    """
    weights = None if config.class_weights is None else torch.tensor(config.class_weights)
    if weights is not None and len(weights) != num_classes:
        raise ConfigError(f"loss.class_weights: must be {num_classes} numbers, one per class, got {len(weights)}")
    build: dict[str, Criterion] = {
        "cross_entropy": partial(upsample_cross_entropy, label_smoothing=config.label_smoothing),
        "ohem": partial(
            ohem_loss, threshold=config.ohem_threshold, min_kept=config.ohem_min_kept, rule=config.ohem_rule
        ),
        "focal": partial(focal_loss, gamma=config.focal_gamma, alpha=config.focal_alpha),
        "dice": _unaveraged(partial(dice_loss, exponent=config.dice_exponent, smooth=config.dice_smooth)),
        "lovasz": _unaveraged(lovasz_loss),
    }
    shares = config.weights * (len(config.kind) if len(config.weights) == 1 else 1)
    chosen = [build[kind] for kind in config.kind]
    there: dict[torch.device, Tensor | None] = {}  # a copy to a card in every step would wait for it

    def criterion(logits_low: Tensor, labels: Tensor, **place: Any) -> LossAndAccuracy:
        device = logits_low.device
        if device not in there:
            there[device] = None if weights is None else weights.to(device)
        results = [part(logits_low, labels, class_weights=there[device], **place) for part in chosen]
        total = torch.stack([share * result.loss for share, result in zip(shares, results, strict=True)]).sum()
        return LossAndAccuracy(total, results[0].accuracy)

    return criterion


def _unaveraged(loss: Criterion) -> Criterion:
    """Dice and Lovasz average over classes, whatever pixels are averaged over."""

    def call(logits_low: Tensor, labels: Tensor, *, averaging: str, **place: Any) -> LossAndAccuracy:
        return loss(logits_low, labels, **place)

    return call
