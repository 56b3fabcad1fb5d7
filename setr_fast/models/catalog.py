"""The models by name: sizes and defaults of the official implementations, as data. Imports nothing heavy.

Source: SETR, arXiv 2012.15840 (github fudan-zvg/SETR, configs/SETR); Segmenter, arXiv 2105.05633
(github rstrudel/segmenter, segm/config.yml).
"""

from __future__ import annotations

from typing import Any

from setr_fast.errors import ConfigError
from setr_fast.fields import known_names, nearest
from setr_fast.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

# width, depth, patch; every head is 64 wide
_ENCODERS: dict[str, dict[str, Any]] = {
    "vit_t16": {"width": 192, "depth": 12, "num_heads": 3, "patch_size": 16},
    "vit_s16": {"width": 384, "depth": 12, "num_heads": 6, "patch_size": 16},
    "vit_b16": {"width": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
    "vit_b8": {"width": 768, "depth": 12, "num_heads": 12, "patch_size": 8},
    "vit_l16": {"width": 1024, "depth": 24, "num_heads": 16, "patch_size": 16},
    "deit_b16": {"width": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
}

_SETR: dict[str, Any] = {
    "layer_norm_eps": 1e-6,
    "head_norm_eps": 1e-6,
    "loss_averaging": "all",
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "final_norm": False,
}
_SEGMENTER: dict[str, Any] = {
    "layer_norm_eps": 1e-5,
    "final_norm": True,
    "final_norm_eps": 1e-5,
    "aux_levels": (),
    "drop_path": 0.1,
    "loss_averaging": "valid",
    "mean": (127.5, 127.5, 127.5),
    "std": (127.5, 127.5, 127.5),
    "window_rule": "segmenter",
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "setr_naive": _SETR
    | {"head": "naive", "head_kernel": 1, "head_scales": (1,), "aux_kernel": 1, "aux_scales": (1,), "conv_bias": True},
    "setr_pup": _SETR
    | {"head": "pup", "head_kernel": 3, "head_scales": (2, 2, 2, 1), "aux_kernel": 3, "aux_scales": (4,)},
    "setr_mla": _SETR
    | {
        "head": "mla",
        "class_token": "drop",
        "conv_bias": False,
        "aux_bias": False,
        "classifier_kernel": 3,
        "head_align_corners": True,
    },
    "segmenter_linear": _SEGMENTER | {"head": "linear"},
    "segmenter_mask": _SEGMENTER | {"head": "mask", "decoder_dropout": 0.1},
}
# No published SETR is this small: its heads are cut down with its encoder, so that it trains on a CPU.
_SETR_TINY: dict[str, Any] = {"head_channels": 64}
# Segmenter's DeiT keeps the distillation token, and rounds ImageNet's statistics to two places.
_SEGMENTER_DEIT: dict[str, Any] = {"distilled": True, "mean": (123.68, 116.28, 103.53), "std": (58.40, 57.12, 57.38)}

# Published taps, by depth of the encoder.
_TAPS: dict[str, dict[int, tuple[int, ...]]] = {
    "setr_naive": {24: (9, 14, 19, 23), 12: (2, 5, 8, 11)},
    "setr_pup": {24: (9, 14, 19, 23), 12: (4, 7, 9, 11)},
    "setr_mla": {24: (5, 11, 17, 23), 12: (2, 5, 8, 11)},
}
_SETR_ENCODERS = ("vit_t16", "vit_s16", "vit_b16", "deit_b16", "vit_l16")
_SEGMENTER_ENCODERS = ("vit_t16", "vit_s16", "vit_b16", "vit_l16", "vit_b8", "deit_b16")
_DEFAULT_SIZE = 512


def list_models() -> list[str]:
    """Return the names that ``create_model`` knows."""
    return [
        f"{family}_{encoder}"
        for family in _FAMILIES
        for encoder in (_SETR_ENCODERS if family in _TAPS else _SEGMENTER_ENCODERS)
    ]


def model_spec(
    name: str, num_classes: int, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> ModelSpec:
    """Return the spec of a catalog model with some fields changed.

    Fields that follow from others do so unless they are given: ``num_heads`` (64 wide heads), ``taps``,
    ``aux_levels``, ``aux_channels``, ``branch_channels``, ``decoder_width``, ``decoder_num_heads``,
    ``pos_grid`` and ``stride`` (two thirds of the window).

    Units: image_size in pixels; default 512 x 512.
    Raises: ConfigError for an unknown name or option (with the nearest), or an illegal value.
    """
    names = list_models()
    if name not in names:
        raise ConfigError(f"create_model: name must be one of list_models(), got {name!r}{nearest(name, names, 3)}")
    reserved = {"name", "num_classes", "image_size"} & overrides.keys()
    if reserved:
        raise ConfigError(f"create_model: {', '.join(sorted(reserved))} must be given as an argument, not an override")
    known_names(ModelSpec, overrides, where="create_model")
    family = next(f for f in _FAMILIES if name.startswith(f + "_"))
    encoder = name.removeprefix(family + "_")
    values = _ENCODERS[encoder] | _FAMILIES[family]
    if encoder == "deit_b16" and family not in _TAPS:
        values |= _SEGMENTER_DEIT
    if encoder == "vit_t16" and family in _TAPS:
        values |= _SETR_TINY
    size = _size(image_size)
    values = values | overrides
    for key, value in _derived(family, values, size).items():
        if key not in overrides:
            values[key] = value
    # The fields may still be of the wrong type: ModelSpec says so.
    return ModelSpec(name=name, num_classes=num_classes, image_size=size, **values)


def spread_taps(depth: int, count: int) -> tuple[int, ...]:
    """Return ``count`` block indices at equal distances that end with the last block.

    Tap i of n is block (i * depth) / n, rounded half up, minus one; shallow encoders give fewer taps.
    """
    return tuple(sorted({(2 * i * depth + count) // (2 * count) - 1 for i in range(1, count + 1)} - {-1}))


def _derived(family: str, values: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Work out the fields that follow from others."""
    defaults = {"head_channels": 256, "decoder_width": values["width"], "taps": ()}
    given = defaults | values
    try:
        width, depth, patch = int(given["width"]), int(given["depth"]), max(int(given["patch_size"]), 1)
        head_channels, decoder_width = int(given["head_channels"]), int(given["decoder_width"])
        taps = _TAPS.get(family, {}).get(depth, spread_taps(depth, 4 if family in _TAPS else 1))
        num_taps = len(given["taps"]) or len(taps)
    except (TypeError, ValueError):
        return {}  # a value of the wrong type: ModelSpec names it
    derived: dict[str, Any] = {
        "taps": taps,
        "num_heads": width // 64 if width % 64 == 0 and width else values["num_heads"],
        "aux_channels": head_channels,
        "branch_channels": max(head_channels // 2, 1),
        "decoder_width": decoder_width,
        "decoder_num_heads": decoder_width // 64 if decoder_width % 64 == 0 and decoder_width else values["num_heads"],
        "pos_grid": (-(-size[0] // patch), -(-size[1] // patch)),
        "stride": (max(size[0] * 2 // 3, 1), max(size[1] * 2 // 3, 1)),
    }
    if family in _TAPS:
        # The last tap of Naive has no auxiliary head; that of PUP and MLA has one.
        derived["aux_levels"] = tuple(range(num_taps - (family == "setr_naive")))
    return derived


def _size(image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if image_size is None:
        return _DEFAULT_SIZE, _DEFAULT_SIZE
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f"create_model: image_size must be one or two positive whole numbers, got {image_size}")
    return pair[0], pair[1]
