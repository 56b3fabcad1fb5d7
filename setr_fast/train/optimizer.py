"""Parameter groups, optimiser and learning-rate schedule."""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from setr_fast.train.options import OptimConfig

HEADS = ("head.", "aux_heads.")  # MLA's neck is not among them, as in the published code
_AUX_NORM = re.compile(r"aux_heads\..*(norm|bn)\.(weight|bias)")
_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Split the parameters by learning rate (encoder or each of its layers, heads) and weight decay (matrices, the
    rest).

    Source: SETR mmseg/core ``paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.)})`` for the multiplier; BEiT
    (arXiv 2106.08254), ``optim_factory.py`` for the layers: block i of L has layer_decay ** (L - 1 - i).
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    blocks = [int(found[1]) for name, _ in trained if (found := _BLOCK.match(name))]
    last = max(blocks, default=0)
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained:
        decayed = config.decay_all or (parameter.ndim >= 2 and not _is_embedding(name))
        title, factor = _layer(name, last, config)
        groups.setdefault((title, factor, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": title if decayed else f"{title}, no decay",
            "base_lr": config.lr * factor,
            "lr": config.lr,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (title, factor, decayed), parameters in sorted(groups.items(), key=_heads_first)
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimiser over ``parameter_groups``. On a GPU a step is a few kernels over all of them (``fused``)."""
    groups = parameter_groups(model, config)
    fused = True if all(parameter.is_cuda for parameter in model.parameters()) else None
    if config.name == "sgd":
        momentum, nesterov = config.momentum, config.nesterov
        return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=nesterov, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def learning_rate(base_lr: float, step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of ``step`` (from 0) out of ``steps``.

    Source: mmcv PolyLrUpdaterHook, ``(lr - min_lr) * (1 - step / steps) ** power + min_lr``, with linear warm-up;
    Loshchilov and Hutter, arXiv 1608.03983, equation 5 without restarts, for cosine.
    """
    done = step / steps
    left = (1 - done) ** config.power if config.schedule == "poly" else (1 + math.cos(math.pi * done)) / 2
    # A layer's rate may begin below the minimum: it then stays as it is.
    lowest = min(config.min_lr, base_lr)
    lr = (base_lr - lowest) * left + lowest
    return lr * min(1.0, (step + 1) / (config.warmup_steps + 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> float:
    """Set every group's learning rate for this step and return the encoder's."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(group["base_lr"], step, steps, config)
    return learning_rate(config.lr, step, steps, config)


def _layer(name: str, last: int, config: OptimConfig) -> tuple[str, float]:
    """Return the title of a parameter's group, and its learning rate as a multiple of ``lr``."""
    if config.aux_norms_as_encoder and _AUX_NORM.fullmatch(name):
        return "norms of auxiliary heads", 1.0
    if name.startswith(HEADS):
        return "heads", config.head_lr_multiplier
    if config.layer_decay == 1.0:
        return "encoder", 1.0
    if found := _BLOCK.match(name):
        return f"encoder block {int(found[1])}", config.layer_decay ** (last - int(found[1]))
    if name.startswith("encoder.") and not name.startswith("encoder.norm."):
        return "encoder embedding", config.layer_decay ** (last + 1)
    return "encoder norm and neck", 1.0


def _heads_first(group: tuple[tuple[str, float, bool], list[nn.Parameter]]) -> tuple[bool, float, str, bool]:
    (title, factor, decayed), _ = group
    return title != "heads", -factor, title, not decayed


def _is_embedding(name: str) -> bool:
    """Position tables and class, distillation and mask-class tokens are not decayed."""
    return any(
        part in name for part in ("pos_embed", "cls_token", "class_token", "dist_token", "cls_emb", "class_embed")
    )
