"""Specs of the recorded models of other code bases: each reached by the switches of ModelSpec alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from setr_fast.models.spec import ModelSpec
from tests.models.fixture_maps import head_of

HALF = (127.5, 127.5, 127.5)


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """Return the spec that reproduces a recorded model, by switches alone."""
    head = head_of(config)
    values: dict[str, Any] = {"name": config["variant"], "num_classes": 7, "head": head}
    values |= {"resize_to": "input", "pos_resize": "bilinear"}
    values |= _SPECS[config["family"]](config, head)
    height, width = values["image_size"]
    values.setdefault("pos_grid", (height // 16, width // 16))
    if head in ("linear", "mask"):
        values |= {"taps": (values["depth"] - 1,), "aux_levels": (), "final_norm": True}
    elif "aux_levels" not in values:
        values["aux_levels"] = (0, 1, 2) if head == "naive" else (0, 1, 2, 3)
    if head == "naive":
        values = {"head_kernel": 1, "head_scales": (1,), "aux_kernel": 1, "aux_scales": (1,)} | values
    return ModelSpec.from_dict(values)


def _channels(main: int, branch: int | None = None) -> dict[str, Any]:
    return {"head_channels": main, "aux_channels": main, "branch_channels": branch or main // 2}


def _official(config: Mapping[str, Any], head: str) -> dict[str, Any]:
    backbone = config["model"]["backbone"]
    values = {
        "width": backbone["embed_dim"],
        "depth": backbone["depth"],
        "num_heads": backbone["num_heads"],
        "image_size": (backbone["img_size"],) * 2,
        "taps": config["taps"],
        "pos_resize": "none",
        "loss_averaging": "all",
    } | _channels(config["head_channels"])
    if head == "mla":
        values |= {"class_token": "drop", "conv_bias": False, "head_align_corners": True, "classifier_kernel": 3}
    return values


def _mmseg(config: Mapping[str, Any], head: str) -> dict[str, Any]:
    model = config["model"]
    backbone, decode = model["backbone"], model["decode_head"]
    values = {
        "width": backbone["embed_dims"],
        "depth": backbone["num_layers"],
        "num_heads": backbone["num_heads"],
        "image_size": backbone["img_size"],
        "class_token": "keep" if backbone["with_cls_token"] else "drop",
        "patch_bias": backbone["patch_bias"],
        "pos_resize": backbone["interpolate_mode"],
        "layer_norm_eps": backbone["norm_cfg"]["eps"],
        "loss_averaging": "all",
        "conv_bias": False,
        "drop_path_on": "ffn",
    }
    if head in ("naive", "pup"):
        aux = model["auxiliary_head"]
        values |= {
            "taps": backbone["out_indices"],
            "head_channels": decode["channels"],
            "head_scales": (decode["up_scale"],) * decode["num_convs"],
            "aux_levels": [a["in_index"] for a in aux],
            "aux_channels": aux[0]["channels"],
            "aux_scales": (aux[0]["up_scale"],) * aux[0]["num_convs"],
            "aux_kernel": aux[0]["kernel_size"],
        }
    if head == "mla":
        values |= {
            "taps": backbone["out_indices"],
            "head_channels": model["neck"]["out_channels"],
            "branch_channels": decode["mla_channels"],
            "aux_levels": (3, 2, 1, 0),
            "aux_bias": True,
            "deep_first": True,
        }
    if head == "mask":
        values |= {"decoder_width": decode["embed_dims"], "decoder_num_heads": decode["num_heads"]}
    return values


def _segmenter(config: Mapping[str, Any], head: str) -> dict[str, Any]:
    net = config["net_kwargs"]
    eps = config["layer_norm_eps"]
    return {
        "width": net["d_model"],
        "depth": net["n_layers"],
        "num_heads": net["n_heads"],
        "image_size": net["image_size"],
        "layer_norm_eps": eps,
        "final_norm_eps": eps,
        "decoder_width": net["d_model"],
        "decoder_num_heads": config["decoder_heads"] or 1,
        "resize_to": "padded",
        "cosine_eps": 0.0,
        "pos_resize_when": "tokens",
        "mean": HALF,
        "std": HALF,
    }


def _paddleseg(config: Mapping[str, Any], head: str) -> dict[str, Any]:
    backbone, model = config["backbone"], config["model"]
    values = {
        "width": backbone["embed_dim"],
        "depth": backbone["depth"],
        "num_heads": backbone["num_heads"],
        "image_size": (backbone["img_size"],) * 2,
        "layer_norm_eps": backbone["epsilon"],
        "final_norm_eps": backbone["epsilon"],
        "pos_resize": "bicubic",
        "fit": "floor",
        "align_corners": model.get("align_corners", False),
        "shared_modules": True,
        "mean": HALF,
        "std": HALF,
        "cosine_eps": 0.0,
    }
    if head in ("naive", "pup", "mla"):
        args = config["args"]
        values["taps"] = model["backbone_indices"]
        values |= _channels(args.get("pup_channels", args.get("mla_channels", 256)), args.get("mlahead_channels"))
    if head == "mla":
        values |= {"head_align_corners": True, "classifier_kernel": 3, "aux_bias": True}
    if head == "mask":
        values |= {"decoder_width": model["h_embed_dim"], "decoder_num_heads": model["h_num_heads"]}
        values["decoder_qkv_bias"] = model["h_qkv_bias"]
    return values


def _paddlevit(config: Mapping[str, Any], head: str) -> dict[str, Any]:
    transformer = config["model"]["MODEL"]["TRANS"]
    values = {
        "width": transformer["HIDDEN_SIZE"],
        "depth": transformer["NUM_LAYERS"],
        "num_heads": transformer["NUM_HEADS"],
        "image_size": config["model"]["DATA"]["CROP_SIZE"],
        "taps": config["taps"],
        "class_token": "drop",
        "pos_resize": "none",
    } | _channels(config["head_channels"])
    if head == "mla":
        values |= {"conv_bias": False, "head_align_corners": True, "classifier_kernel": 3, "aux_levels": (0, 1, 2)}
    return values


_SPECS: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    "setr-official": _official,
    "mmseg": _mmseg,
    "segmenter": _segmenter,
    "paddleseg": _paddleseg,
    "paddlevit": _paddlevit,
}
