"""Bring a model to the layout that another code base has: the same function in other tensors, or an error.

Differences that tensors can express are removed: biases in front of a batch norm, shared modules, the order of MLA's
levels. What a code base fixes in its code and the model has otherwise is an error that names the field.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from setr_fast.checkpoints.rules import fold_conv_bias, zero_conv_bias
from setr_fast.errors import ConfigError
from setr_fast.models.spec import ModelSpec

_MODULE_BIAS = {"qkv_bias": True, "in_chans": 3}
_UP = {"class_token": "keep", "final_norm": False, "distilled": False, "shared_modules": False}
# What each code base's modules are built with, whatever its config says.
_FIXED: dict[tuple[str, str], dict[str, Any]] = {
    ("setr", "naive"): {**_UP, "patch_bias": True, "conv_bias": True},
    ("setr", "pup"): {**_UP, "patch_bias": True, "conv_bias": True, "head_kernel": 3, "aux_kernel": 3},
    ("setr", "mla"): {
        **_UP,
        "class_token": "drop",
        "patch_bias": True,
        "conv_bias": False,
        "deep_first": False,
        "classifier_kernel": 3,
        "aux_bias": False,
        "branch_scale": 4,
    },
    ("mmseg", "naive"): {**_UP, "conv_bias": False},
    ("mmseg", "pup"): {**_UP, "conv_bias": False},
    ("mmseg", "mla"): {
        **_UP,
        "class_token": "drop",
        "conv_bias": False,
        "deep_first": True,
        "classifier_kernel": 1,
        "aux_bias": True,
    },
    ("mmseg", "linear"): {"distilled": False, "final_norm": True},
    ("mmseg", "mask"): {"distilled": False, "final_norm": True, "decoder_qkv_bias": True},
    ("segmenter", "linear"): {"patch_bias": True, "final_norm": True},
    ("segmenter", "mask"): {"patch_bias": True, "final_norm": True, "decoder_qkv_bias": True},
    ("paddleseg", "naive"): {**_UP, "patch_bias": True, "conv_bias": True, "shared_modules": True, "head_kernel": 1},
    ("paddleseg", "pup"): {**_UP, "patch_bias": True, "conv_bias": True, "shared_modules": True, "head_kernel": 3},
    ("paddleseg", "mla"): {
        **_UP,
        "patch_bias": True,
        "conv_bias": True,
        "shared_modules": True,
        "deep_first": False,
        "classifier_kernel": 3,
        "aux_bias": True,
        "branch_scale": 4,
    },
    ("paddleseg", "linear"): {"patch_bias": True, "final_norm": True, "distilled": False},
    ("paddleseg", "mask"): {"patch_bias": True, "final_norm": True, "distilled": False, "decoder_qkv_bias": False},
}
TARGETS = sorted({family for family, _ in _FIXED})


def to_layout(
    family: str, spec: ModelSpec, state: dict[str, Tensor]
) -> tuple[ModelSpec, dict[str, Tensor], dict[str, str]]:
    """Return spec and tensors as the code base has them, and what was changed (key or field: how).

    Raises: ConfigError naming every field in which the code base has no choice and the model differs.
    """
    fixed = _FIXED.get((family, spec.head))
    if fixed is None:
        known = ", ".join(name for name in TARGETS if (name, spec.head) in _FIXED) or "native alone"
        raise ConfigError(f"convert: a model with head {spec.head} must be written as {known}, got {family}")
    fixed = _MODULE_BIAS | fixed
    state, changed = dict(state), {}
    if spec.head in ("naive", "pup") and (scales := _scales(family, spec)) != spec.head_scales:
        changed["head_scales"] = f"{spec.head_scales} to {scales}: the classifier, 1x1, changes places with a resize"
        spec = spec.replace(head_scales=scales)
    wanted = {name: fixed[name] for name in fixed if getattr(spec, name) != fixed[name]}
    if "shared_modules" in wanted:
        state = _shared(spec, state) if fixed["shared_modules"] else _unshared(spec, state)
        changed["shared_modules"] = "equal modules under one name" if fixed["shared_modules"] else "one copy per level"
        spec = spec.replace(shared_modules=wanted.pop("shared_modules"))
    if "conv_bias" in wanted:
        state = zero_conv_bias(state) if fixed["conv_bias"] else fold_conv_bias(state)
        changed["conv_bias"] = "zeros added" if fixed["conv_bias"] else "folded into the batch norms' running means"
        spec = spec.replace(conv_bias=wanted.pop("conv_bias"))
    if "deep_first" in wanted and spec.head == "mla":
        spec, state = _reversed_levels(spec, state)
        changed["deep_first"] = "the classifier's input channels and the auxiliary heads in the other order"
        wanted.pop("deep_first")
    if "patch_bias" in wanted and fixed["patch_bias"]:
        state["encoder.patch_embed.bias"] = torch.zeros(spec.width)
        changed["patch_bias"] = "zeros added"
        spec = spec.replace(patch_bias=wanted.pop("patch_bias"))
    if "decoder_qkv_bias" in wanted and fixed["decoder_qkv_bias"]:
        for index in range(spec.decoder_depth):
            state[f"head.blocks.{index}.attn.qkv.bias"] = torch.zeros(3 * spec.decoder_width)
        changed["decoder_qkv_bias"] = "zeros added"
        spec = spec.replace(decoder_qkv_bias=wanted.pop("decoder_qkv_bias"))
    if "aux_bias" in wanted and fixed["aux_bias"]:
        for index in range(_aux_modules(spec)):
            state[f"aux_heads.{index}.classifier.bias"] = torch.zeros(spec.num_classes)
        changed["aux_bias"] = "zeros added"
        spec = spec.replace(aux_bias=wanted.pop("aux_bias"))
    for name in ("mlp_ratio", "decoder_mlp_ratio") if family == "mmseg" else ():  # its widths are products, not rounded
        if getattr(spec, name) % 1 and (spec.head == "mask" or name == "mlp_ratio"):
            wanted[name] = "a whole number"
    if wanted:
        told = "; ".join(f"{name} must be {value}, got {getattr(spec, name)}" for name, value in wanted.items())
        raise ConfigError(
            f"convert: {family} has no such model: {told}; write it as native or train it with that value"
        )
    return spec, state, changed


def _scales(family: str, spec: ModelSpec) -> tuple[int, ...]:
    """Upsampling factors of the main head, the last step before (mmseg) or after (others) the classifier.

    The two commute where that step ends at the picture's size, both resizes being of one kind.
    """
    scales = spec.head_scales
    if len(scales) < 2 or spec.head_align_corners != spec.align_corners or len(set(scales[:-1])) != 1:
        return scales
    inside = (*scales[:-1], scales[0])
    if math.prod(inside) != spec.patch_size or scales not in (inside, (*inside[:-1], 1)):
        return scales
    return inside if family == "mmseg" else (*inside[:-1], 1)


def _aux_modules(spec: ModelSpec) -> int:
    return min(len(spec.aux_levels), 1) if spec.shared_modules else len(spec.aux_levels)


def _unshared(spec: ModelSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One copy of each shared module per level."""
    counts = {"aux_heads": len(spec.aux_levels), "neck.norms": len(spec.taps), "head.branches": len(spec.taps)}
    result = dict(state)
    for prefix, count in counts.items():
        for name in [key for key in state if key.startswith(prefix + ".0.") and (spec.head == "mla" or count)]:
            for index in range(count):
                result[f"{prefix}.{index}{name.removeprefix(prefix + '.0')}"] = state[name]
    return result


def _shared(spec: ModelSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first of equal modules.

    Raises: ConfigError where they are not equal.
    """
    result = dict(state)
    for prefix in ("aux_heads", "neck.norms", "head.branches"):
        for name in [key for key in state if key.startswith(prefix + ".") and not key.startswith(prefix + ".0.")]:
            first = f"{prefix}.0.{name.removeprefix(prefix + '.').partition('.')[2]}"
            if not torch.equal(state[name], state[first]):
                raise ConfigError(
                    f"convert: paddleseg shares one module among all levels, so {name} must equal {first}, got other "
                    "values; write it as another code base"
                )
            del result[name]
    return result


def _reversed_levels(spec: ModelSpec, state: dict[str, Tensor]) -> tuple[ModelSpec, dict[str, Tensor]]:
    """MLA with the levels counted from the other end where the code bases do so."""
    result = dict(state)
    weight = state["head.classifier.weight"]
    blocks = weight.split(spec.branch_channels, dim=1)
    result["head.classifier.weight"] = torch.cat(blocks[::-1], dim=1)
    if not spec.shared_modules:
        last = len(spec.aux_levels) - 1
        for name in [key for key in state if key.startswith("aux_heads.")]:
            _, index, leaf = name.split(".", 2)
            result[f"aux_heads.{last - int(index)}.{leaf}"] = state[name]
    return spec.replace(deep_first=not spec.deep_first, aux_levels=spec.aux_levels[::-1]), result
