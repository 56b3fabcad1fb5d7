"""Parameter groups, optimiser and learning-rate schedule."""

from __future__ import annotations

import torch
from torch import nn

from setr_fast.train.options import OptimConfig

HEADS = ("head.", "aux_heads.")  # MLA's neck is not among them, as in the published code


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Split the parameters by learning rate (encoder, heads) and weight decay (matrices, the rest).

    Source: SETR mmseg/core ``paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.)})`` for the multiplier.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = config.decay_all or (parameter.ndim >= 2 and not _is_embedding(name))
        groups.setdefault((name.startswith(HEADS), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": f"{'heads' if head else 'encoder'}{'' if decayed else ', no decay'}",
            "base_lr": config.lr * (config.head_lr_multiplier if head else 1.0),
            "lr": config.lr,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (head, decayed), parameters in sorted(groups.items(), reverse=True)
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimiser over ``parameter_groups``."""
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def learning_rate(base_lr: float, step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of ``step`` (from 0) out of ``steps``.

    Source: mmcv PolyLrUpdaterHook, ``(lr - min_lr) * (1 - step / steps) ** power + min_lr``, with linear warm-up.
    """
    lr = (base_lr - config.min_lr) * (1 - step / steps) ** config.power + config.min_lr
    return lr * min(1.0, (step + 1) / (config.warmup_steps + 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> float:
    """Set every group's learning rate for this step and return the encoder's."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(group["base_lr"], step, steps, config)
    return learning_rate(config.lr, step, steps, config)


def _is_embedding(name: str) -> bool:
    """Position tables and class, distillation and mask-class tokens are not decayed."""
    return any(
        part in name for part in ("pos_embed", "cls_token", "class_token", "dist_token", "cls_emb", "class_embed")
    )
