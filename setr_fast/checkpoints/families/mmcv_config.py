"""What configs of the mmcv kind (official SETR, mmsegmentation 0.x and 1.x) say in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setr_fast.checkpoints.families.family import Fields, at, given, pair


def shared_fields(values: Mapping[str, Any]) -> Fields:
    """Fields that both code bases spell alike; ``values`` is the whole config, or at least its ``model``."""
    model = at(values, "model") or {}
    backbone, decode = at(model, "backbone") or {}, at(model, "decode_head") or {}
    aux = at(model, "auxiliary_head")
    first = aux[0] if isinstance(aux, (list, tuple)) and aux else None
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


def _three(value: Any) -> tuple[Any, ...] | None:
    return tuple(value) if isinstance(value, (list, tuple)) and len(value) == 3 else None
