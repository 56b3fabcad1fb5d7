"""Everything that defines a model, as data: sizes, and every point where the published code bases differ.

Two models with equal specs compute the same function of their weights. The heads and the encoder hold no
special case for a code base: each difference is one field here. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from setr_fast.errors import ConfigError
from setr_fast.fields import coerce_fields, known_names

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ModelSpec:
    """Definition of one model. Fields that a head does not use keep their defaults."""

    name: str
    """What the model is called; free text."""
    num_classes: int
    """Classes that are predicted."""
    image_size: tuple[int, int]
    """Height and width of a training crop and of an inference window, in pixels."""
    class_names: tuple[str, ...] | None = None
    """One name per class."""
    palette: tuple[tuple[int, int, int], ...] | None = None
    """One RGB colour per class, 0..255."""

    # --- encoder ---
    width: int = 1024
    """Numbers per token."""
    depth: int = 24
    """Transformer blocks."""
    num_heads: int = 16
    """Attention heads; must divide the width."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    in_chans: int = 3
    """Channels of the picture."""
    mlp_ratio: float = 4.0
    """Width of the MLP over the width of a token."""
    qkv_bias: bool = True
    """The query, key and value projection has a bias."""
    patch_bias: bool = True
    """The patch projection has a bias."""
    distilled: bool = False
    """A distillation token follows the class token (DeiT)."""
    class_token: Literal["keep", "drop"] = "keep"
    """keep: it takes part in attention; drop: it is cut off before the first block, but stays in the file."""
    layer_norm_eps: float = 1e-6
    """Epsilon of the LayerNorms inside the encoder's blocks."""
    final_norm: bool = False
    """A LayerNorm follows the last tapped block."""
    final_norm_eps: float = 1e-6
    """Its epsilon."""
    pos_grid: tuple[int, int] = (32, 32)
    """Rows and columns of the stored position table."""
    pos_resize: Literal["bilinear", "bicubic", "none"] = "bilinear"
    """How the table is fitted to another grid (half-pixel, not antialiased); none: another grid is an error."""
    pos_resize_when: Literal["grid", "tokens"] = "grid"
    """grid: resized when rows or columns differ; tokens: only when the number of patches differs."""
    dropout: float = 0.0
    """After the positions, on attention weights, after both projections of a block and after GELU."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    drop_path_on: Literal["both", "ffn"] = "both"
    """Branches that stochastic depth may drop."""
    fit: Literal["pad", "floor"] = "pad"
    """Sides that are no multiple of the patch: pad with zeros bottom and right, or ignore the rest."""

    # --- head ---
    head: Literal["naive", "pup", "mla", "linear", "mask", "none"] = "pup"
    """naive, pup, mla: SETR; linear, mask: Segmenter; none: an encoder alone, which predicts nothing."""
    taps: tuple[int, ...] = (9, 14, 19, 23)
    """Blocks (from 0, shallow to deep) whose outputs are used; the last feeds the head of Naive and PUP."""
    head_channels: int = 256
    """Channels of the stages of Naive and PUP, and of the levels that MLA's neck gives."""
    head_kernel: Literal[1, 3] = 3
    """Kernel of the stages of Naive and PUP."""
    head_scales: tuple[int, ...] = (2, 2, 2, 1)
    """Naive and PUP: one stage (convolution, batch norm, ReLU, upsampling by this factor) per entry."""
    head_align_corners: bool = False
    """Bilinear upsampling inside the heads puts corners on corners."""
    head_norm_eps: float = 1e-6
    """Epsilon of the LayerNorm in front of each SETR head or of each MLA level."""
    conv_bias: bool = True
    """Convolutions in front of a batch norm have a bias."""
    classifier_kernel: Literal[1, 3] = 1
    """Kernel of MLA's classifier; the other heads have 1."""
    branch_channels: int = 128
    """MLA: channels of each level's branch in the head."""
    branch_scale: int = 4
    """MLA: upsampling of each branch."""
    deep_first: bool = False
    """MLA: the branches are concatenated deepest level first."""
    batch_norm_eps: float = 1e-5
    """Epsilon of the batch norms."""

    # --- auxiliary heads (training only) ---
    aux_levels: tuple[int, ...] = (0, 1, 2, 3)
    """Positions in ``taps`` that feed an auxiliary head each, in the order of all_logits; empty: none."""
    aux_channels: int = 256
    """Channels of the stages of Naive's and PUP's auxiliary heads."""
    aux_kernel: Literal[1, 3] = 3
    """Kernel of their stages."""
    aux_scales: tuple[int, ...] = (4,)
    """Their stages, as in head_scales."""
    aux_bias: bool = False
    """MLA: the auxiliary 1x1 classifiers have a bias."""
    aux_weight: float = 0.4
    """Weight of each auxiliary loss."""
    shared_modules: bool = False
    """One auxiliary head serves all levels; MLA: also one LayerNorm and one branch (PaddleSeg)."""

    # --- mask transformer ---
    decoder_width: int = 1024
    """Width of a decoder token."""
    decoder_depth: int = 2
    """Blocks of the decoder."""
    decoder_num_heads: int = 16
    """Attention heads of the decoder."""
    decoder_mlp_ratio: float = 4.0
    """Width of the decoder's MLP over its width."""
    decoder_qkv_bias: bool = True
    """The decoder's query, key and value projection has a bias."""
    decoder_layer_norm_eps: float = 1e-5
    """Epsilon inside the decoder's blocks."""
    decoder_norm_eps: float = 1e-5
    """Epsilon of the norm after the decoder's blocks and of the one over classes."""
    decoder_dropout: float = 0.0
    """Dropout inside the decoder's blocks."""
    decoder_drop_path: float = 0.0
    """Stochastic depth of the decoder's last block."""
    cosine_eps: float = 1e-12
    """Least norm that patch and class vectors are divided by; 0: plain division."""

    # --- from logits to the picture ---
    align_corners: bool = False
    """The last resize puts corners on corners."""
    resize_to: Literal["padded", "input"] = "padded"
    """padded: resize to the padded size, then crop; input: resize straight to the picture's size."""

    # --- loss ---
    loss_averaging: Literal["all", "valid"] = "valid"
    """all: ignored pixels count in the mean's denominator; valid: they do not."""
    ignore_index: int = 255
    """Label of pixels without a loss."""

    # --- pictures in, windows ---
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean that is subtracted, RGB and then further channels, 0..255."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation that is divided by, likewise."""
    inference_mode: Literal["whole", "slide"] = "slide"
    """One pass at the picture's size, or windows of image_size."""
    stride: tuple[int, int] = (341, 341)
    """Step between windows, in pixels."""
    resize_short: int | None = None
    """Pictures are brought to this shorter edge first, in pixels; none: taken at their own size."""
    min_short: int | None = None
    """No scale brings the shorter edge below this (official SETR and Segmenter: the window); none: no such rule."""
    resize_rule: Literal["opencv", "tensor"] = "opencv"
    """opencv: pictures are resized as bytes, bit for bit as OpenCV does; tensor: after normalisation, in float32
    (PaddleSeg's and PaddleViT's scales)."""
    window_rule: Literal["mmseg", "segmenter", "paddleseg"] = "mmseg"
    """Where windows start; they differ in the windows before the last."""
    merge: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged over scales and mirrored pictures (PaddleSeg averages logits)."""

    def __post_init__(self) -> None:
        for name, value in coerce_fields(ModelSpec, self, where="model").items():
            object.__setattr__(self, name, value)
        faults = [text for text in _faults(self) if text]
        if faults:
            raise ConfigError(f"model {self.name}: " + "; ".join(faults))

    @property
    def leading_tokens(self) -> int:
        """Rows of the position table in front of the patches."""
        return 2 if self.distilled else 1

    @property
    def has_neck(self) -> bool:
        """MLA aggregates the taps before its head and its auxiliary heads."""
        return self.head == "mla"

    def replace(self, **changes: Any) -> ModelSpec:
        """Return a copy with some fields changed.

        Raises: ConfigError for an unknown field, with the nearest name.
        """
        known_names(ModelSpec, changes, where="model")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON and TOML hold (tuples become lists)."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """Rebuild a spec from ``to_dict``; fields that are absent take their defaults.

        Raises: ConfigError for unknown, missing or illegal fields.
        """
        known_names(cls, values, where="model")
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise ConfigError(f"model: field {', '.join(missing)} must be given, got none")
        return cls(**values)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _faults(s: ModelSpec) -> list[str]:
    """Say everything that is wrong with the values, one text per fault."""

    def within(name: str, low: float, high: float) -> str:
        value = getattr(s, name)
        inside = all(low <= v <= high for v in value) if isinstance(value, tuple) else low <= value <= high
        return "" if inside else f"{name} must lie in {low}..{high}, got {value}"

    limits = [within("num_classes", 1, 65535), within("depth", 1, 1024), within("decoder_depth", 1, 1024)]
    limits += [within(n, 1, 65536) for n in ("width", "image_size", "head_channels", "aux_channels", "branch_channels")]
    limits += [within(n, 1, 65536) for n in ("decoder_width", "num_heads", "decoder_num_heads", "stride", "pos_grid")]
    limits += [within("patch_size", 1, 1024), within("in_chans", 1, 1024)]
    limits += [within(n, 1, 64) for n in ("head_scales", "aux_scales", "branch_scale")]
    limits += [within(n, 0.25, 64.0) for n in ("mlp_ratio", "decoder_mlp_ratio")]
    limits += [within(n, 0.0, 1.0) for n in ("dropout", "drop_path", "decoder_dropout", "decoder_drop_path")]
    limits += [within(n, 1e-12, 1.0) for n in ("layer_norm_eps", "final_norm_eps", "head_norm_eps", "batch_norm_eps")]
    limits += [within(n, 1e-12, 1.0) for n in ("decoder_layer_norm_eps", "decoder_norm_eps")]
    limits += [within("cosine_eps", 0.0, 1.0), within("aux_weight", 0.0, 100.0), within("std", 1e-6, 1e6)]
    limits += [within(n, 1, 65536) for n in ("resize_short", "min_short") if getattr(s, n) is not None]
    if any(limits):  # what follows divides by these numbers
        return limits
    return [
        "" if s.width % s.num_heads == 0 else f"num_heads must divide the width {s.width}, got {s.num_heads}",
        ""
        if s.head != "mask" or s.decoder_width % s.decoder_num_heads == 0
        else f"decoder_num_heads must divide decoder_width {s.decoder_width}, got {s.decoder_num_heads}",
        ""
        if s.taps and list(s.taps) == sorted(set(s.taps)) and s.taps[0] >= 0 and s.taps[-1] < s.depth
        else f"taps must increase and lie in 0..{s.depth - 1}, got {s.taps}",
        ""
        if all(0 <= level < len(s.taps) for level in s.aux_levels)
        else f"aux_levels must be positions in taps, 0..{len(s.taps) - 1}, got {s.aux_levels}",
        ""
        if s.fit == "pad" or s.resize_to == "input"
        else f"resize_to must be input where fit is floor (nothing covers the cut edge), got {s.resize_to}",
        ""
        if len(s.mean) == len(s.std) and len(s.mean) in (3, s.in_chans)
        else f"mean and std must be {s.in_chans} numbers each, one per channel, got {len(s.mean)} and {len(s.std)}",
        "" if s.head_scales and s.aux_scales else "head_scales and aux_scales must have an entry each, got none",
        ""
        if s.class_names is None or len(s.class_names) == s.num_classes
        else f"class_names must be {s.num_classes} names, got {len(s.class_names)}",
        ""
        if s.palette is None or (len(s.palette) == s.num_classes and all(0 <= v <= 255 for c in s.palette for v in c))
        else f"palette must be {s.num_classes} colours of 0..255, got {len(s.palette)}",
        ""
        if not 0 <= s.ignore_index < s.num_classes
        else f"ignore_index must not be a class (0..{s.num_classes - 1}), got {s.ignore_index}",
    ]
