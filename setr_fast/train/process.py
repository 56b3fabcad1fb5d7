"""What a training process holds on a CPU beside its model: Python, the libraries, their code and work areas."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from setr_fast.data.loader import Batch
from setr_fast.models.model import create_model
from setr_fast.train.optimizer import build_optimizer
from setr_fast.train.options import OptimConfig, ParallelConfig, TrainConfig
from setr_fast.train.parallel import spread
from setr_fast.train.ranks import Ranks
from setr_fast.train.step import take_step

STATUS = Path("/proc/self/status")


@functools.cache
def resident_after_a_small_step() -> int:
    """Return the bytes that this process holds once a model of a few thousand weights has taken a step; 0 if unknown.

    All that training imports and runs is in memory then, so this is measured where the training is to run.
    """
    import setr_fast.train.launch  # noqa: F401  (it loads what a run loads)

    classes, size, ranks = 2, 32, Ranks(0, 1, torch.device("cpu"))
    options: dict[str, Any] = {"width": 32, "depth": 4, "num_heads": 2, "patch_size": 8, "head_channels": 8}
    model = create_model("setr_pup_vit_t16", num_classes=classes, image_size=size, **options)
    config = TrainConfig(precision="fp32")
    loss = spread(model, ranks, config, ParallelConfig(), fsdp=False, bf16=False)
    labels = torch.zeros(2, size, size, dtype=torch.uint8)
    take_step(
        model,
        loss,
        build_optimizer(model, OptimConfig()),
        Batch(torch.zeros(2, 3, size, size), labels, ["", ""]),
        config,
        ranks,
        0,
    )
    return _resident()


def _resident() -> int:
    if not STATUS.exists():
        return 0
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
