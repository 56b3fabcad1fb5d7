"""What would end a run later than its first step, or with a library's traceback, said before it begins."""

from __future__ import annotations

from setr_fast.config import Config
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import windows_of
from setr_fast.engine.windows import window_starts
from setr_fast.errors import ConfigError
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.train.ranks import Ranks


def refuse_early(model: SegmentationModel, config: Config, ranks: Ranks) -> None:
    """Raise ConfigError for options that validation or a batch norm cannot work with."""
    _refuse_windows(model.spec, config.inference)
    _refuse_precision(config.inference, ranks)
    _refuse_one_value(model, config, ranks)


def _refuse_windows(spec: ModelSpec, inference: InferenceConfig) -> None:
    if inference.mode == "whole":
        return
    for side, stride in zip(*windows_of(spec, (1 << 16, 1 << 16), inference), strict=True):
        window_starts(side, side, stride)


def _refuse_precision(inference: InferenceConfig, ranks: Ranks) -> None:
    wanted = {"int8": "cpu", "fp8": "cuda"}.get(inference.precision, ranks.device.type)
    if wanted != ranks.device.type:
        where = "a CPU" if wanted == "cpu" else "a GPU"
        raise ConfigError(
            f"inference.precision: {inference.precision} must run on {where}, got {ranks.device.type}; use bf16"
        )


def _refuse_one_value(model: SegmentationModel, config: Config, ranks: Ranks) -> None:
    """A batch norm needs a spread: two values of each channel or more (PyTorch refuses one)."""
    if model.spec.head not in ("naive", "pup", "mla"):
        return
    crop, share = config.augment.crop, config.train.batch_size // ranks.world_size
    grid = model.grid_of(crop)
    together = share // min(config.train.accumulate, max(share, 1)) * ranks.world_size
    if grid.h * grid.w * together == 1:
        raise ConfigError(
            f"augment.crop: batch norms must see two values per channel or more, got one (crops of {crop[0]} x "
            f"{crop[1]} are one patch, pictures come one at a time); larger crops, or more pictures at a time"
        )
