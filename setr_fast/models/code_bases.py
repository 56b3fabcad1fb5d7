"""What other code bases' models of the same names have otherwise, as fields of the spec. Imports nothing heavy.

The catalog's models are those of official SETR and official Segmenter. That these fields are a code base's own is held
by writing such a model as its checkpoint: nothing may have to be rewritten.

Source: github open-mmlab/mmsegmentation, configs/_base_/models/{setr_*, segmenter_*}.py; PaddlePaddle/PaddleSeg,
configs/{setr,segmenter}.
"""

from __future__ import annotations

from typing import Any

_HALF = {"mean": (127.5, 127.5, 127.5), "std": (127.5, 127.5, 127.5)}
_MMSEG: dict[str, Any] = {
    "pos_resize_when": "tokens",
    "resize_to": "input",
    "loss_averaging": "all",
    "drop_path_on": "ffn",
}
_MMSEG_UP = _MMSEG | {"conv_bias": False, "aux_levels": (0, 1, 2)}
_MMSEG_SEGMENTER = _MMSEG | {
    **{"layer_norm_eps": 1e-6, "final_norm_eps": 1e-6, "pos_resize": "bicubic", "window_rule": "mmseg"},
    "decoder_dropout": 0.0,
    **_HALF,
}
_PADDLE: dict[str, Any] = {
    "pos_resize": "bicubic",
    "pos_resize_when": "tokens",
    "fit": "floor",
    "resize_to": "input",
    "shared_modules": True,
    "cosine_eps": 0.0,
    "window_rule": "paddleseg",
    "merge": "logits",
    "resize_rule": "tensor",
    "loss_averaging": "valid",
    **_HALF,
}
# Its encoders keep the position table of 384 x 384 pixels and resize it at every step.
_PADDLE_SETR = _PADDLE | {"class_token": "keep", "align_corners": True, "conv_bias": True, "pos_grid": (24, 24)}

CODE_BASES: dict[str, dict[str, dict[str, Any]]] = {
    "mmseg": {
        "naive": _MMSEG_UP | {"head_kernel": 1, "aux_kernel": 1, "head_scales": (4,), "aux_scales": (4,)},
        "pup": _MMSEG_UP | {"head_scales": (2, 2, 2, 2), "aux_scales": (4, 4)},
        "mla": _MMSEG
        | {
            "deep_first": True,
            "aux_levels": (3, 2, 1, 0),
            "aux_bias": True,
            "classifier_kernel": 1,
            "head_align_corners": False,
        },
        "linear": _MMSEG_SEGMENTER,
        "mask": _MMSEG_SEGMENTER | {"decoder_drop_path": 0.1},
    },
    "paddleseg": {
        "naive": _PADDLE_SETR,
        "pup": _PADDLE_SETR,
        "mla": _PADDLE_SETR | {"aux_bias": True},
        "linear": _PADDLE,
        "mask": _PADDLE | {"decoder_qkv_bias": False, "decoder_dropout": 0.0, "decoder_drop_path": 0.1},
    },
}
"""Fields by code base and head."""


def fields_of(code_base: str, name: str) -> dict[str, Any]:
    """Return what a code base's variant of a catalog model has otherwise; nothing for names that are not there."""
    return CODE_BASES[code_base].get([*name.split("_"), ""][1], {})
