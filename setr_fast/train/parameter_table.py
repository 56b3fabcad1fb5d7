"""What a configuration makes of every parameter: learning rate from first to last step, weight decay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from setr_fast.config import Config
from setr_fast.data.classes import read_class_table
from setr_fast.data.layouts.known import known_set
from setr_fast.models.model import create_model
from setr_fast.train.optimizer import learning_rate, parameter_groups
from setr_fast.train.options import OptimConfig


@dataclass(frozen=True)
class Row:
    """One parameter group."""

    name: str
    tensors: int
    parameters: int
    rates: tuple[float, float, float]
    """Learning rate at the first step, half-way and at the last step."""
    weight_decay: float


def rows(model: nn.Module, config: OptimConfig, steps: int) -> list[Row]:
    """Return the parameter groups of a model, and what is frozen."""
    found = []
    for group in parameter_groups(model, config):
        members: list[nn.Parameter] = group["params"]  # type: ignore[assignment]
        base = float(group["base_lr"])  # type: ignore[arg-type]
        first, middle, last = (learning_rate(base, step, steps, config) for step in (0, steps // 2, steps - 1))
        size, decay = sum(p.numel() for p in members), float(group["weight_decay"])  # type: ignore[arg-type]
        found.append(Row(str(group["name"]), len(members), size, (first, middle, last), decay))
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if frozen:
        found.append(Row("frozen", len(frozen), sum(p.numel() for p in frozen), (0.0, 0.0, 0.0), 0.0))
    return found


def parameter_table(config: Config) -> list[str]:
    """Return the table as aligned lines, headed by optimiser and schedule. No weight is made."""
    num_classes = _classes(config)
    with torch.device("meta"):
        model = create_model(config.model.name, num_classes, image_size=config.augment.crop, **config.model.overrides())
    if config.model.freeze_encoder:
        model.encoder.requires_grad_(False)
    optim, steps = config.optim, config.train.steps
    kind = f"sgd, momentum {optim.momentum:g}" + (", Nesterov" if optim.nesterov else "")
    kind = kind if optim.name == "sgd" else f"adamw, betas {optim.betas[0]:g} {optim.betas[1]:g}"
    curve = f"poly {optim.power:g}" if optim.schedule == "poly" else "cosine"
    clip = f", gradient norm at most {config.train.clip_norm:g}" if config.train.clip_norm else ""
    cells: list[tuple[str, ...]] = [
        ("parameters of", "tensors", "numbers", "first lr", "half-way", "last", "weight decay")
    ]
    for row in rows(model, optim, steps):
        rates = [f"{rate:.4g}" for rate in row.rates] if row.name != "frozen" else ["-"] * 3
        cells.append((row.name, str(row.tensors), f"{row.parameters:,}", *rates, f"{row.weight_decay:g}"))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    schedule = f"{curve} over {steps} steps, {optim.warmup_steps} of warm-up, down to {optim.min_lr:g}"
    return [
        f"{config.model.name}, {num_classes} classes; {kind}{clip}; {schedule}",
        *("  ".join(f"{cell:{width}s}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells),
    ]


def _classes(config: Config) -> int:
    """Return how many classes the data set has; two where a folder of the user's own will say."""
    table = None if config.data.dataset is None else known_set(config.data.dataset).table_path
    return config.data.num_classes or (2 if table is None else read_class_table(table).num_classes)
