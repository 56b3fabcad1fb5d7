"""The config that a code base needs beside an exported file, in its own form."""

from __future__ import annotations

import pprint
from typing import Any

import yaml

from setr_fast.checkpoints.configs import Form
from setr_fast.checkpoints.families.segmenter import NORMALISATION
from setr_fast.models.spec import ModelSpec

Config = dict[str, Any]


def peer_config(family: str, spec: ModelSpec) -> tuple[Form, Config]:
    """Return form and values of the config that makes the code base build this model."""
    if family == "segmenter":
        return "segmenter", _segmenter(spec)
    if family == "paddleseg":
        return "paddle", _paddleseg(spec)
    return "mmseg", _mmseg(spec) if family == "mmseg" else _official(spec)


def config_text(form: Form, values: Config) -> str:
    """Return the text of a config file: Python for mmseg and official SETR, else YAML."""
    if form == "mmseg":
        return "".join(
            f"{name} = {pprint.pformat(value, sort_dicts=False, width=110)}\n" for name, value in values.items()
        )
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def _table_size(spec: ModelSpec) -> tuple[int, int]:
    return spec.pos_grid[0] * spec.patch_size, spec.pos_grid[1] * spec.patch_size


def _one(pair: tuple[int, int]) -> int | list[int]:
    """One number where both are equal, as the code bases write it."""
    return pair[0] if pair[0] == pair[1] else list(pair)


def _ratio(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _windows(spec: ModelSpec) -> Config:
    if spec.inference_mode == "whole":
        return {"mode": "whole"}
    return {"mode": "slide", "crop_size": spec.image_size, "stride": spec.stride}


def _mmseg(spec: ModelSpec) -> Config:
    setr = spec.head in ("naive", "pup", "mla")
    corners = spec.head_align_corners if setr else spec.align_corners
    head: Config = {
        "in_channels": spec.width,
        "num_classes": spec.num_classes,
        "dropout_ratio": spec.decoder_dropout,
        "align_corners": corners,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    }
    aux_loss = head["loss_decode"] | {"loss_weight": spec.aux_weight}
    backbone: Config = {
        "type": "VisionTransformer",
        "img_size": _table_size(spec),
        "patch_size": spec.patch_size,
        "in_channels": spec.in_chans,
        "embed_dims": spec.width,
        "num_layers": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": _ratio(spec.mlp_ratio),
        "qkv_bias": spec.qkv_bias,
        "patch_bias": spec.patch_bias,
        "out_indices": spec.taps if setr else -1,
        "drop_rate": spec.dropout,
        "drop_path_rate": spec.drop_path,
        "norm_cfg": {"type": "LN", "eps": spec.layer_norm_eps, "requires_grad": True},
        "with_cls_token": spec.class_token == "keep",
        "final_norm": spec.final_norm,
        "interpolate_mode": "bicubic" if spec.pos_resize == "bicubic" else "bilinear",
    }
    model: Config = {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": spec.ignore_index,
        },
        "backbone": backbone,
    }
    if spec.head == "mask":
        head |= {
            "type": "SegmenterMaskTransformerHead",
            "channels": spec.width,
            "num_layers": spec.decoder_depth,
            "num_heads": spec.decoder_num_heads,
            "embed_dims": spec.decoder_width,
            "mlp_ratio": _ratio(spec.decoder_mlp_ratio),
            "drop_path_rate": spec.decoder_drop_path,
        }
    elif spec.head == "linear":
        head |= {"type": "FCNHead", "channels": spec.width, "num_convs": 0, "concat_input": False}
    elif spec.head == "mla":
        levels = len(spec.taps)
        norm = {"type": "SyncBN", "requires_grad": True}
        model["neck"] = {
            "type": "MLANeck",
            "in_channels": [spec.width] * levels,
            "out_channels": spec.head_channels,
            "norm_cfg": norm,
            "act_cfg": {"type": "ReLU"},
        }
        head |= {
            "type": "SETRMLAHead",
            "in_channels": (spec.head_channels,) * levels,
            "in_index": tuple(range(levels)),
            "channels": spec.branch_channels * levels,
            "mla_channels": spec.branch_channels,
            "up_scale": spec.branch_scale,
            "norm_cfg": norm,
        }
        model["auxiliary_head"] = [
            head
            | {"type": "FCNHead", "in_channels": spec.head_channels, "channels": spec.head_channels, "in_index": index}
            | {"num_convs": 0, "kernel_size": 1, "concat_input": False, "loss_decode": aux_loss}
            for index in range(len(spec.aux_levels))
        ]
        for aux in model["auxiliary_head"]:
            aux.pop("mla_channels")
            aux.pop("up_scale")
    else:
        head |= {"type": "SETRUPHead", "norm_cfg": {"type": "SyncBN", "requires_grad": True}}
        model["auxiliary_head"] = [
            head
            | {"channels": spec.aux_channels, "in_index": level, "kernel_size": spec.aux_kernel}
            | {"num_convs": len(spec.aux_scales), "up_scale": spec.aux_scales[0], "loss_decode": aux_loss}
            for level in spec.aux_levels
        ]
        head |= {"channels": spec.head_channels, "in_index": len(spec.taps) - 1, "kernel_size": spec.head_kernel}
        head |= {"num_convs": len(spec.head_scales), "up_scale": spec.head_scales[0]}
    return {"model": model | {"decode_head": head, "train_cfg": {}, "test_cfg": _windows(spec)}}


def _official(spec: ModelSpec) -> Config:
    side = spec.image_size[0]
    mla = spec.head == "mla"
    backbone: Config = {
        "type": "VIT_MLA" if mla else "VisionTransformer",
        "model_name": "vit_large_patch16_384" if spec.width == 1024 else "vit_base_patch16_384",
        "img_size": side,
        "patch_size": spec.patch_size,
        "in_chans": spec.in_chans,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": _ratio(spec.mlp_ratio),
        "num_classes": spec.num_classes,
        "drop_rate": spec.dropout,
        "drop_path_rate": spec.drop_path,
        "pos_embed_interp": True,
        "align_corners": False,
        "random_init": True,  # else its constructor fetches ImageNet weights
    }
    norm_cfg = {"type": "SyncBN", "requires_grad": True}
    backbone |= {"mla_channels": spec.head_channels, "mla_index": spec.taps, "norm_cfg": norm_cfg} if mla else {}
    kind = "VIT_MLAHead" if mla else "VisionTransformerUpHead"
    head: Config = {
        "type": kind,
        "in_channels": spec.width,
        "channels": 512,
        "img_size": side,
        "num_classes": spec.num_classes,
        "norm_cfg": norm_cfg,
        "align_corners": spec.align_corners,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    }
    aux_loss = head["loss_decode"] | {"loss_weight": spec.aux_weight}
    if mla:
        aux = [
            head | {"type": "VIT_MLA_AUXIHead", "in_channels": spec.head_channels, "in_index": level}
            for level in spec.aux_levels
        ]
        head |= {"mla_channels": spec.head_channels, "mlahead_channels": spec.branch_channels}
    else:
        stages, aux_stages = len(spec.head_scales), len(spec.aux_scales)
        ups = 2 if spec.aux_scales == (4,) else 1
        aux = [
            head
            | {"embed_dim": spec.width, "in_index": spec.taps[level], "num_conv": 1 + aux_stages}
            | {"num_upsampe_layer": ups, "conv3x3_conv1x1": spec.aux_kernel == 3}
            for level in spec.aux_levels
        ]
        head |= {"embed_dim": spec.width, "in_index": spec.taps[-1]}
        head |= {"num_conv": 4 if stages == 4 else 2, "num_upsampe_layer": {4: 4}.get(stages, _official_ups(spec))}
        head |= {"conv3x3_conv1x1": spec.head_kernel == 3}
    aux = [entry | {"loss_decode": aux_loss} for entry in aux]
    model: Config = {"type": "EncoderDecoder", "backbone": backbone, "decode_head": head, "auxiliary_head": aux}
    model = {**model, "pretrained": None, "train_cfg": {}}
    norm = {"mean": list(spec.mean), "std": list(spec.std), "to_rgb": True}
    return {"model": model, "test_cfg": _windows(spec), "img_norm_cfg": norm}


def _official_ups(spec: ModelSpec) -> int:
    return 2 if spec.head_scales == (4,) else 1


def _segmenter(spec: ModelSpec) -> Config:
    kind = "deit" if spec.mean == NORMALISATION["deit"]["mean"] else "vit"
    decoder: Config = {"name": "linear", "n_cls": spec.num_classes}
    if spec.head == "mask":
        decoder = {
            "name": "mask_transformer",
            "drop_path_rate": spec.decoder_drop_path,
            "dropout": spec.decoder_dropout,
            "n_layers": spec.decoder_depth,
            "n_cls": spec.num_classes,
        }
    window, stride = _one(spec.image_size), _one(spec.stride)
    return {
        "dataset_kwargs": {"crop_size": window, "normalization": kind},
        "inference_kwargs": {"im_size": window, "window_size": window, "window_stride": stride},
        "net_kwargs": {
            "backbone": _segmenter_backbone(spec, kind),
            "image_size": list(_table_size(spec)),
            "patch_size": spec.patch_size,
            "d_model": spec.width,
            "n_heads": spec.num_heads,
            "n_layers": spec.depth,
            "normalization": kind,
            "distilled": spec.distilled,
            "dropout": spec.dropout,
            "drop_path_rate": spec.drop_path,
            "n_cls": spec.num_classes,
            "decoder": decoder,
        },
    }


def _segmenter_backbone(spec: ModelSpec, kind: str) -> str:
    """A name that its loader does not know: of one it knows, it fetches ImageNet weights before it loads the file."""
    kind = "deit_distilled" if spec.distilled else kind
    return f"{kind}_{spec.width}_{spec.depth}_patch{spec.patch_size}"


def _paddleseg(spec: ModelSpec) -> Config:
    setr = spec.head in ("naive", "pup", "mla")
    table = _table_size(spec)
    backbone = {
        "type": "VisionTransformer",
        "img_size": _one(table),
        "patch_size": spec.patch_size,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": _ratio(spec.mlp_ratio),
        "qkv_bias": spec.qkv_bias,
        "epsilon": spec.layer_norm_eps,
        "final_norm": spec.final_norm,
        "drop_rate": spec.dropout,
        "drop_path_rate": spec.drop_path,
    }
    model: Config = {"num_classes": spec.num_classes, "backbone": backbone}
    if setr:
        model = {"type": "SegmentationTransformer", **model, "head": spec.head, "align_corners": spec.align_corners}
        model["backbone_indices"] = list(spec.taps)
        if spec.head == "mla":
            model |= {"mla_channels": spec.head_channels, "mlahead_channels": spec.branch_channels}
    elif spec.head == "mask":
        model = {"type": "MaskSegmenter", **model, "h_embed_dim": spec.decoder_width, "h_depth": spec.decoder_depth}
        model |= {"h_num_heads": spec.decoder_num_heads, "h_mlp_ratio": _ratio(spec.decoder_mlp_ratio)}
    else:
        model = {"type": "LinearSegmenter", **model}
    config: Config = {"model": model}
    if spec.inference_mode == "slide":  # width first
        config["test_config"] = {
            "is_slide": True,
            "crop_size": list(spec.image_size[::-1]),
            "stride": list(spec.stride[::-1]),
        }
    return config
