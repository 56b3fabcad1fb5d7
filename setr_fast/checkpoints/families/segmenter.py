"""Official Segmenter (github rstrudel/segmenter): ``checkpoint.pth`` beside ``variant.yml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setr_fast.checkpoints.families.encoder import TIMM_PARTS, BlockKeys, timm_keys
from setr_fast.checkpoints.families.family import Family, Fields, Found, Shapes, at, given, pair
from setr_fast.checkpoints.families.heads import MaskKeys
from setr_fast.checkpoints.rules import Dropped, Rule, affine
from setr_fast.models.spec import ModelSpec

_ENCODER = timm_keys("encoder.")
_MASK = MaskKeys(
    class_embed="decoder.cls_emb",
    proj_in="decoder.proj_dec.",
    blocks=BlockKeys("decoder.blocks.{}.", TIMM_PARTS),
    proj_patch="decoder.proj_patch",
    proj_class="decoder.proj_classes",
    norm="decoder.decoder_norm.",
    mask_norm="decoder.mask_norm.",
)
_IMAGENET_CLASSES = 1000
NORMALISATION: dict[str, dict[str, tuple[float, float, float]]] = {
    "vit": {"mean": (127.5, 127.5, 127.5), "std": (127.5, 127.5, 127.5)},
    "deit": {"mean": (123.68, 116.28, 103.53), "std": (58.40, 57.12, 57.38)},  # rounded by the code base
}


def _detect(shapes: Shapes) -> bool:
    return {"encoder.patch_embed.proj.weight", "encoder.cls_token"} <= shapes.keys() and shapes.starts("decoder.")


def _find(shapes: Shapes) -> Found:
    fields, rows = _ENCODER.fields(shapes)
    fields |= dict.fromkeys(("layer_norm_eps", "final_norm_eps", "decoder_layer_norm_eps", "decoder_norm_eps"), 1e-5)
    fields |= {
        "final_norm": True,
        "pos_resize": "bilinear",
        "pos_resize_when": "tokens",
        "resize_to": "padded",
        "loss_averaging": "valid",
        "aux_levels": (),
        "cosine_eps": 0.0,
        "window_rule": "segmenter",
        **NORMALISATION["deit" if fields["distilled"] else "vit"],
    }
    if "decoder.cls_emb" in shapes:
        fields |= {"head": "mask", **_MASK.fields(shapes)}
    else:
        fields |= {"head": "linear", "num_classes": shapes.need("decoder.head.weight", 2)[0]}
    return Found(fields, rows, decoder_heads="width", stride=lambda side: max(side - 32, 1))


def _rules(spec: ModelSpec) -> list[Rule]:
    rules = _ENCODER.rules(spec)
    return rules + (_MASK.rules(spec) if spec.head == "mask" else affine("decoder.head.", "head.classifier"))


def _dead(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    heads = ["encoder.head", "encoder.head_dist"] if spec.distilled else ["encoder.head"]
    shapes: dict[str, tuple[int, ...]] = {}
    for head in heads:
        shapes |= {f"{head}.weight": (_IMAGENET_CLASSES, spec.width), f"{head}.bias": (_IMAGENET_CLASSES,)}
    return shapes


def _read_config(values: Mapping[str, Any], found: Found) -> Fields:
    net, windows = at(values, "net_kwargs") or {}, at(values, "inference_kwargs") or {}
    normalisation = at(values, "dataset_kwargs", "normalization") or at(net, "normalization")
    return given(
        num_classes=at(net, "n_cls"),
        num_heads=at(net, "n_heads"),
        grid_size=pair(at(net, "image_size")),
        image_size=pair(at(windows, "window_size")) or pair(at(net, "image_size")),
        dropout=at(net, "dropout"),
        drop_path=at(net, "drop_path_rate"),
        decoder_dropout=at(net, "decoder", "dropout"),
        decoder_drop_path=at(net, "decoder", "drop_path_rate"),
        stride=pair(at(windows, "window_stride")),
        **NORMALISATION.get(str(normalisation), {}),
    )


SEGMENTER = Family(
    name="segmenter",
    title="official Segmenter",
    detect=_detect,
    find=_find,
    rules=_rules,
    dropped=(Dropped(r"encoder\.(head|head_dist|pre_logits\.fc)\.(weight|bias)", "ImageNet's classifier, never run"),),
    config_form="segmenter",
    read_config=_read_config,
    dead=_dead,
)
