"""Options of inference and evaluation. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from setr_fast.errors import ConfigError
from setr_fast.fields import coerce_fields


@dataclass(frozen=True)
class InferenceConfig:
    """How a picture of any size becomes a class map."""

    mode: Literal["auto", "whole", "slide"] = "auto"
    """whole: one pass at the picture's size; slide: windows of the training crop; auto: the model's own rule, but slide
    above four megapixels."""
    crop: tuple[int, int] | None = None
    """Height and width of a window; none: the model's training crop."""
    stride: tuple[int, int] | None = None
    """Step between windows; none: the model's own, or two thirds of a window given by crop."""
    scales: tuple[float, ...] = (1.0,)
    """Ratios of the picture's size whose probabilities are averaged."""
    flip: bool = False
    """Average with the mirrored picture."""
    resize_short: int | None = None
    """Bring the shorter edge to this many pixels first; none: the model's own rule, else the picture's own size."""
    resize_long: int | None = None
    """Keep the longer edge at or below this while resizing; none: eight times resize_short."""
    min_short: int | None = None
    """No scale brings the shorter edge below this (official SETR and Segmenter: the window); none: no such rule."""
    window_rule: Literal["mmseg", "segmenter", "paddleseg"] = "mmseg"
    """Where windows start; they differ in the windows before the last."""
    merge: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged over scales and mirrored pictures (PaddleSeg averages logits)."""
    window_batch: int = 4
    """Windows that pass through the model together."""
    canvas_mib: int = 1024
    """Memory for logits that wait for their last window; wider pictures are done in vertical strips."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass."""

    def __post_init__(self) -> None:
        for name, value in coerce_fields(InferenceConfig, self, where="inference").items():
            object.__setattr__(self, name, value)
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"scales: must be positive numbers, got {self.scales}")
        if self.window_batch < 1:
            raise ConfigError(f"window_batch: must be 1 or more, got {self.window_batch}")
        for name in ("crop", "stride"):
            value = getattr(self, name)
            if value is not None and min(value) < 1:
                raise ConfigError(f"{name}: must be positive, got {value}")
        for name in ("resize_short", "resize_long", "min_short", "canvas_mib"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be positive, got {value}")
        if self.resize_long is not None and self.resize_short is None:
            raise ConfigError(f"resize_long: needs resize_short beside it, got {self.resize_long} alone")
