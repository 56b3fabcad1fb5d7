"""A run small enough to repeat: built-in scenes of 32 pixels, a four-block encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from setr_fast.config import Config
from setr_fast.data.options import AugmentConfig, DataConfig
from setr_fast.models.options import ModelConfig
from setr_fast.train.options import OptimConfig, TrainConfig


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Runs are compared to the bit with those of ranks, which have one thread each: sums depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """Return a function that makes a configuration; its arguments go into [train]."""
    return tiny_in(tmp_path)


def tiny_in(folder: Path) -> Callable[..., Config]:
    """Return a function that makes configurations of runs in a folder."""

    def make(run: str = "run", *, fsdp: bool = False, resume: bool = False, workers: int = 0, **train: Any) -> Config:
        values: dict[str, Any] = {
            "steps": 6,
            "batch_size": 4,
            "validate_every": 3,
            "log_every": 1,
            "overlays": 2,
            "precision": "fp32",
        }
        return Config(
            model=ModelConfig(
                width=32, depth=4, num_heads=2, patch_size=8, head_channels=8, drop_path=0.2, dropout=0.1
            ),
            data=DataConfig(builtin_train=12, builtin_val=4, builtin_size=32, workers=workers),
            augment=AugmentConfig(crop=(32, 32)),
            optim=OptimConfig(warmup_steps=2),
            train=TrainConfig(**(values | train)),
            run_dir=folder / run,
            resume=resume,
            fsdp=fsdp,
        )

    return make
