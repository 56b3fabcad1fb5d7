"""PaddleSeg: ``.pdparams`` of SETR and Segmenter, and encoders in its format (no ``backbone.``).

Linear weights are [in, out]. Lists made by multiplication repeat one module: all auxiliary heads are one, and in MLA
the four norms and the four branches too; the file lists the copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setr_fast.checkpoints.families.encoder import TIMM_PARTS, BlockKeys, EncoderKeys, timm_keys
from setr_fast.checkpoints.families.family import Family, Fields, Found, Shapes, at, given, pair
from setr_fast.checkpoints.families.heads import MaskKeys, StageKeys, UpHeadKeys, up_scales
from setr_fast.checkpoints.families.setr_official import ask_scales
from setr_fast.checkpoints.rules import TRANSPOSED, Dropped, Rule, affine, shared
from setr_fast.models.spec import ModelSpec

_HALF = (127.5, 127.5, 127.5)
_TAPS = {"naive": (9, 14, 19, 23), "pup": (9, 14, 19, 23), "mla": (5, 11, 17, 23)}
_AUX = {"naive": 3, "pup": 4}  # copies of one head, should a file list it once
_HEADS = {"base": 12, "large": 16, "huge": 16}  # in the names of encoders
_MASK = MaskKeys(
    class_embed="head.cls_token",
    proj_in="head.proj_input.",
    blocks=BlockKeys("head.blocks.{}.", TIMM_PARTS, paddle=True),
    proj_patch="head.proj_patch.weight",
    proj_class="head.proj_class.weight",
    norm="head.decoder_norm.",
    mask_norm="head.mask_norm.",
    linear=TRANSPOSED,
)


def _stage(prefix: str) -> StageKeys:
    return StageKeys(prefix + "_conv.", prefix + "_batch_norm.")


def _up_head(norm: str, sequence: str, scales: tuple[int, ...]) -> UpHeadKeys:
    """An upsampling layer stands between stages, and takes a number in the sequence."""
    at_, stages = 0, []
    for scale in scales:
        stages.append(_stage(f"{sequence}{at_}."))
        at_ += 1 if scale == 1 else 2
    return UpHeadKeys(norm, stages, f"{sequence}{at_}.")


def _encoder(prefix: str) -> EncoderKeys:
    return timm_keys(prefix, dist="", paddle=True)


def is_paddle(shapes: Shapes, key: str) -> bool:
    """Say whether a weight of queries, keys and values is [in, out]."""
    shape = shapes.get(key, ())
    return len(shape) == 2 and shape[1] == 3 * shape[0]


def _detect(shapes: Shapes) -> bool:
    if "backbone.patch_embed.proj.weight" in shapes:
        return shapes.starts("head.") and not shapes.starts("decode_head.")
    return "patch_embed.proj.weight" in shapes and is_paddle(shapes, "blocks.0.attn.qkv.weight")


def _find(shapes: Shapes) -> Found:
    prefix = "backbone." if "backbone.patch_embed.proj.weight" in shapes else ""
    fields, rows = _encoder(prefix).fields(shapes)
    fields |= {
        "final_norm": prefix + "norm.weight" in shapes,
        "layer_norm_eps": 1e-6,
        "final_norm_eps": 1e-6,
        "head_norm_eps": 1e-6,
        "pos_resize": "bicubic",
        "pos_resize_when": "tokens",
        "fit": "floor",
        "resize_to": "input",
        "loss_averaging": "valid",
        "shared_modules": True,
        "aux_levels": (),
        "mean": _HALF,
        "std": _HALF,
        "cosine_eps": 0.0,
        "window_rule": "paddleseg",
        "merge": "logits",
        "resize_rule": "tensor",
    }
    if not prefix:
        return Found(fields | {"head": "none"}, rows)
    if "head.cls_token" in shapes or "head.head.weight" in shapes:
        return _find_segmenter(shapes, fields, rows)
    fields["align_corners"] = True
    if "head.mla.mla_p2._conv.weight" in shapes:
        return _find_mla(shapes, fields, rows)
    return _find_up(shapes, fields, rows)


def _find_segmenter(shapes: Shapes, fields: Fields, rows: int) -> Found:
    fields |= dict.fromkeys(("layer_norm_eps", "final_norm_eps", "decoder_layer_norm_eps", "decoder_norm_eps"), 1e-5)
    if "head.cls_token" in shapes:
        fields |= {"head": "mask", **_MASK.fields(shapes)}
    else:
        fields |= {"head": "linear", "num_classes": shapes.need("head.head.weight", 2)[1]}
    return Found(fields, rows, stride=lambda side: side)


def _find_up(shapes: Shapes, fields: Fields, rows: int) -> Found:
    stages = sum(key.startswith("head.cls_head.") and key.endswith("._conv.weight") for key in shapes)
    head = "naive" if stages == 1 else "pup"
    scales = up_scales(head, stages, main=True)
    main = _up_head("head.cls_head_norm.", "head.cls_head.", scales or (2,) * (stages - 1) + (1,))
    fields |= {"head": head, **main.main_fields(shapes)}
    found = Found(fields, rows, (_TAPS[head],) if fields["depth"] == 24 else ())
    found.asked = ask_scales("head_scales", scales, fields)
    listed = shapes.count("head.aux_head_norms.{}.weight")
    found.levels = aux = _AUX[head] if listed == 1 else listed
    fields["aux_levels"] = tuple(range(aux))
    if aux:
        fields["aux_scales"] = (1,) if "head.aux_heads.0.1.weight" in shapes else (4,)
        fields |= _up_head("", "head.aux_heads.0.", fields["aux_scales"]).aux_fields(shapes)
    return found


def _find_mla(shapes: Shapes, fields: Fields, rows: int) -> Found:
    levels = shapes.count("head.mla.mla_p{}._conv.weight", start=2)
    classes, _, kernel, _ = shapes.need("head.cls_head.weight", 4)
    fields |= {
        "head": "mla",
        "num_classes": classes,
        "classifier_kernel": kernel,
        "head_channels": shapes.need("head.mla.mla_p2_1x1._conv.weight", 4)[0],
        "branch_channels": shapes.need("head.feat_convs.0.0._conv.weight", 4)[0],
        "conv_bias": "head.mla.mla_p2._conv.bias" in shapes,
        "head_align_corners": True,
        "aux_bias": "head.aux_heads.0.bias" in shapes,
        "aux_levels": tuple(range(levels)) if "head.aux_heads.0.weight" in shapes else (),
    }
    return Found(fields, rows, (_TAPS["mla"],) if fields["depth"] == 24 else (), levels=levels)


def _rules(spec: ModelSpec) -> list[Rule]:
    rules = _encoder("" if spec.head == "none" else "backbone.").rules(spec)
    levels, aux = range(len(spec.taps)), range(len(spec.aux_levels))
    if spec.head == "linear":
        rules += affine("head.head.", "head.classifier", TRANSPOSED)
    if spec.head == "mask":
        rules += _MASK.rules(spec)
    if spec.head in ("naive", "pup"):
        main = _up_head("head.cls_head_norm.", "head.cls_head.", spec.head_scales)
        rules += main.rules("head", spec.conv_bias, paddle=True)
        if aux:

            def of_index(j: str) -> list[Rule]:
                keys = _up_head(f"head.aux_head_norms.{j}.", f"head.aux_heads.{j}.", spec.aux_scales)
                return keys.rules("aux_heads.0", spec.conv_bias, paddle=True)

            rules += shared(of_index, [str(j) for j in aux])
    if spec.head == "mla":
        for n in levels:
            for ours, theirs in (("reduce", f"head.mla.mla_p{n + 2}_1x1."), ("smooth", f"head.mla.mla_p{n + 2}.")):
                rules += _stage(theirs).rules(f"neck.{ours}.{n}", spec.conv_bias, paddle=True)
        rules += shared(lambda key: affine(key, "neck.norms.0"), [f"head.norms.{n}." for n in levels])
        for i in (0, 1):
            rules += shared(
                lambda key, i=i: _stage(key).rules(f"head.branches.0.{i}", spec.conv_bias, paddle=True),  # type: ignore[misc]
                [f"head.feat_convs.{n}.{i}." for n in levels],
            )
        rules += affine("head.cls_head.", "head.classifier")
        if aux:
            one = [f"head.aux_heads.{j}." for j in aux]
            rules += shared(lambda key: affine(key, "aux_heads.0.classifier", bias=spec.aux_bias), one)
    return rules


def _read_config(values: Mapping[str, Any], found: Found) -> Fields:
    model = at(values, "model") or {}
    backbone, head = at(model, "backbone") or {}, at(model, "head")
    test = at(values, "test_config") or {}
    name = str(at(backbone, "type") or "").lower()
    taps = at(model, "backbone_indices")
    window = pair(at(test, "crop_size"), swap=True)
    return given(
        num_classes=at(model, "num_classes"),
        num_heads=at(backbone, "num_heads") or next((n for part, n in _HEADS.items() if part in name), None),
        decoder_num_heads=at(model, "h_num_heads") or at(head, "h_num_heads"),
        taps=tuple(taps) if taps and found.fields["head"] not in ("linear", "mask", "none") else None,
        align_corners=at(model, "align_corners"),
        drop_path=at(backbone, "drop_path_rate"),
        dropout=at(backbone, "drop_rate"),
        grid_size=pair(at(backbone, "img_size")),
        image_size=window,
        stride=pair(at(test, "stride"), swap=True),
        inference_mode=None if window is None else "slide" if at(test, "is_slide") else "whole",
    )


PADDLESEG = Family(
    name="paddleseg",
    title="PaddleSeg",
    detect=_detect,
    find=_find,
    rules=_rules,
    dropped=(
        Dropped(r"StructuredToParameterName@@", "Paddle's table of internal names"),
        Dropped(r"(backbone\.)?(head|head_dist)\.(weight|bias)", "ImageNet's classifier, never run"),
    ),
    config_form="paddle",
    read_config=_read_config,
)
