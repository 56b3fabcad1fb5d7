"""Encoders as timm and DeiT write them: flat keys, PyTorch layout."""

from __future__ import annotations

import math

from torch import Tensor

from setr_fast.checkpoints.families.encoder import timm_keys
from setr_fast.checkpoints.families.family import Family, Found, Shapes
from setr_fast.checkpoints.families.paddleseg import is_paddle
from setr_fast.checkpoints.families.segmenter import NORMALISATION
from setr_fast.checkpoints.rules import Dropped
from setr_fast.models.spec import IMAGENET_MEAN, IMAGENET_STD

_KEYS = timm_keys("")
_PATCH = "patch_embed.proj.weight"
_COLOURS = 3  # of the old files whose patch projection is a matrix


def _detect(shapes: Shapes) -> bool:
    return {_PATCH, "cls_token"} <= shapes.keys() and not is_paddle(shapes, "blocks.0.attn.qkv.weight")


def _prepare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old files store the patch projection as a matrix [D, 3 * P * P]."""
    weight = tensors[_PATCH]
    if weight.ndim != 2 or weight.shape[1] % _COLOURS:
        return tensors
    side = math.isqrt(weight.shape[1] // _COLOURS)
    if _COLOURS * side * side != weight.shape[1]:
        return tensors
    return tensors | {_PATCH: weight.unflatten(1, (_COLOURS, side, side))}


def _find(shapes: Shapes) -> Found:
    fields, rows = _KEYS.fields(shapes)
    normal = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if fields["distilled"] else NORMALISATION["vit"]
    fields |= {
        "final_norm": "norm.weight" in shapes,
        "layer_norm_eps": 1e-6,
        "final_norm_eps": 1e-6,
        "pos_resize": "bilinear",
        "head": "none",
        "aux_levels": (),
        **normal,
    }
    return Found(fields, rows)


TIMM = Family(
    name="timm",
    title="timm or DeiT",
    detect=_detect,
    find=_find,
    rules=_KEYS.rules,
    prepare=_prepare,
    dropped=(Dropped(r"(head|head_dist|pre_logits\.fc)\.(weight|bias)", "ImageNet's classifier"),),
)
