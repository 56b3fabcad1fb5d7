"""What configs of the mmcv kind (official SETR, mmsegmentation 0.x and 1.x) say in the same words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from setr_fast.checkpoints.families.family import Fields, at, given, pair

_AUX = "auxiliary_head."
_NUMBERED = re.compile(r"auxiliary_head\.\d+\.")


def shared_fields(values: Mapping[str, Any]) -> Fields:
    """Fields that both code bases spell alike; ``values`` is the whole config, or at least its ``model``."""
    model = at(values, "model") or {}
    backbone, decode = at(model, "backbone") or {}, at(model, "decode_head") or {}
    aux = auxiliary_heads(values)
    first = aux[0] if aux else None
    test = at(model, "test_cfg") or at(values, "test_cfg") or {}
    normal = at(model, "data_preprocessor") or at(values, "data_preprocessor") or at(values, "img_norm_cfg") or {}
    corners = at(decode, "align_corners")
    return given(
        num_classes=at(decode, "num_classes"),
        num_heads=at(backbone, "num_heads"),
        grid_size=pair(at(backbone, "img_size")),
        image_size=pair(at(test, "crop_size")) or pair(at(backbone, "img_size")),
        dropout=at(backbone, "drop_rate"),
        drop_path=at(backbone, "drop_path_rate"),
        align_corners=corners,
        head_align_corners=corners,
        aux_weight=at(first, "loss_decode", "loss_weight"),
        inference_mode=at(test, "mode"),
        stride=pair(at(test, "stride")),
        mean=_three(at(normal, "mean")),
        std=_three(at(normal, "std")),
    )


def auxiliary_heads(values: Mapping[str, Any]) -> list[Any]:
    """Return the auxiliary heads' configs; mmcv's code bases take one as a dict, or several as a list."""
    heads = at(values, "model", "auxiliary_head")
    return [heads] if isinstance(heads, Mapping) else list(heads) if isinstance(heads, (list, tuple)) else []


def number_the_one_auxiliary_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head that the config gives as a dict, not as a list of one, has no number in its keys."""
    if any(_NUMBERED.match(name) for name in tensors):
        return tensors
    return {name.replace(_AUX, f"{_AUX}0.", 1) if name.startswith(_AUX) else name: t for name, t in tensors.items()}


def _three(value: Any) -> tuple[Any, ...] | None:
    return tuple(value) if isinstance(value, (list, tuple)) and len(value) == 3 else None
