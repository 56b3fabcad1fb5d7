"""Options of inference and evaluation. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from setr_fast.engine.sizes import parse_bytes
from setr_fast.errors import ConfigError
from setr_fast.fields import coerce_fields

MOST_SCALE = 64
MOST_SIDE = 2**17
"""Larger pictures than any that is decoded: a slip of the hand, which would never end."""


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
    """No scale brings the shorter edge below this (official SETR and Segmenter: the window); none: the model's own."""
    resize_rule: Literal["opencv", "tensor"] | None = None
    """opencv: pictures are resized as bytes, bit for bit as OpenCV does; tensor: after normalisation, in float32; none:
    the model's own."""
    window_rule: Literal["mmseg", "segmenter", "paddleseg"] | None = None
    """Where windows start; they differ in the windows before the last; none: the model's own."""
    merge: Literal["probabilities", "logits"] | None = None
    """What is averaged over scales and mirrored pictures; none: the model's own (PaddleSeg averages logits)."""
    memory_budget: str = "2GiB"
    """Memory that a picture's way to its classes may take, beside the model as it was loaded and the picture itself,
    such as 4GiB or 800MB; more windows go together where it is larger, wider pictures are done in strips where it is
    small. Of what predict gets beyond 256 MiB, up to a quarter of all is for pictures that are read ahead or being
    written; one that is too large for that is on its way alone."""
    window_batch: int | None = None
    """Windows that pass through the model together; none: what the memory budget allows, at most 16."""
    canvas_mib: int | None = None
    """Memory for logits that wait for their last window, in MiB; none: half the memory budget."""
    precision: Literal["fp32", "bf16", "int8", "fp8", "auto"] = "fp32"
    """Arithmetic of the forward pass. bf16: 16-bit products; int8 (CPU), fp8 (GPU): 8-bit products, calibrated with the
    first windows, layers that lose too much stay wider; auto: bf16 where it is faster on this machine, else fp32."""
    gelu: Literal["exact", "tanh"] = "exact"
    """tanh: in bf16 on a GPU, GELU runs inside the product in front of it, whose library knows the tanh form only."""
    cuda_graphs: bool = False
    """On a GPU, record the work of a window size once and replay it; for single pictures, whose launches take longer
    than their arithmetic."""

    def __post_init__(self) -> None:
        for name, value in coerce_fields(InferenceConfig, self, where="inference").items():
            object.__setattr__(self, name, value)
        if not self.scales or not 0 < min(self.scales) <= max(self.scales) <= MOST_SCALE:
            raise ConfigError(f"scales: must be positive numbers up to {MOST_SCALE}, got {self.scales}")
        parse_bytes(self.memory_budget)
        for name in ("crop", "stride"):
            value = getattr(self, name)
            if value is not None and min(value) < 1:
                raise ConfigError(f"{name}: must be positive, got {value}")
        for name in ("resize_short", "resize_long", "min_short", "window_batch", "canvas_mib"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be positive, got {value}")
        for name in ("resize_short", "resize_long", "min_short"):
            if (getattr(self, name) or 0) > MOST_SIDE:
                raise ConfigError(f"{name}: must be at most {MOST_SIDE} pixels, got {getattr(self, name)}")
        if self.resize_long is not None and self.resize_short is None:
            raise ConfigError(f"resize_long: needs resize_short beside it, got {self.resize_long} alone")
