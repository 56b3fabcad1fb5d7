"""mmsegmentation 0.x and 1.x: ``.pth`` of SETR and Segmenter, and encoders in its format (no ``backbone.``).

MLA's neck returns its levels deepest first, and everything behind it is numbered in that order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setr_fast.checkpoints.families.encoder import BlockKeys, EncoderKeys
from setr_fast.checkpoints.families.family import Family, Fields, Found, Shapes, at, given
from setr_fast.checkpoints.families.heads import MaskKeys, MlaKeys, StageKeys, UpHeadKeys
from setr_fast.checkpoints.families.mmcv_config import auxiliary_heads, number_the_one_auxiliary_head, shared_fields
from setr_fast.checkpoints.families.setr_official import ask_scales
from setr_fast.checkpoints.rules import CONV_1X1, TRANSPOSED, Rule, affine
from setr_fast.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

_PARTS = {
    "norm1": "ln1.",
    "attn.qkv": "attn.attn.in_proj_",
    "attn.proj": "attn.attn.out_proj.",
    "norm2": "ln2.",
    "mlp.fc1": "ffn.layers.0.0.",
    "mlp.fc2": "ffn.layers.1.",
}
_MASK = MaskKeys(
    class_embed="decode_head.cls_emb",
    proj_in="decode_head.dec_proj.",
    blocks=BlockKeys("decode_head.layers.{}.", _PARTS),
    proj_patch="decode_head.patch_proj.weight",
    proj_class="decode_head.classes_proj.weight",
    norm="decode_head.decoder_norm.",
    mask_norm="decode_head.mask_norm.",
    projection=TRANSPOSED,
)
_HALF = (127.5, 127.5, 127.5)
_PATCH = "patch_embed.projection."


def _encoder(prefix: str) -> EncoderKeys:
    return EncoderKeys(
        cls=prefix + "cls_token",
        pos=prefix + "pos_embed",
        patch=prefix + _PATCH,
        blocks=BlockKeys(prefix + "layers.{}.", _PARTS),
        norm=prefix + "ln1.",
    )


def _up_head(prefix: str, stages: int) -> UpHeadKeys:
    convs = [f"{prefix}up_convs.{i}.0." for i in range(stages)]
    return UpHeadKeys(
        norm=prefix + "norm.",
        stages=[StageKeys(conv + "conv.", conv + "bn.") for conv in convs],
        classifier=prefix + "conv_seg.",
    )


def _mla(levels: int) -> MlaKeys:
    def stage(prefix: str) -> StageKeys:
        return StageKeys(prefix + "conv.", prefix + "bn.")

    shallow_first = range(levels)
    deep_first = range(levels - 1, -1, -1)
    return MlaKeys(
        norms=[f"neck.norm.{n}." for n in shallow_first],
        reduce=[stage(f"neck.mla.channel_proj.{n}.") for n in shallow_first],
        smooth=[stage(f"neck.mla.feat_extract.{j}.") for j in deep_first],
        branches=[(stage(f"decode_head.up_convs.{j}.0."), stage(f"decode_head.up_convs.{j}.1.")) for j in deep_first],
        classifier="decode_head.conv_seg.",
    )


def _detect(shapes: Shapes) -> bool:
    return any(prefix + _PATCH + "weight" in shapes for prefix in ("backbone.", ""))


def _find(shapes: Shapes) -> Found:
    prefix = "backbone." if f"backbone.{_PATCH}weight" in shapes else ""
    fields, rows = _encoder(prefix).fields(shapes)
    fields |= {
        "final_norm": prefix + "ln1.weight" in shapes,
        "layer_norm_eps": 1e-6,
        "final_norm_eps": 1e-6,
        "head_norm_eps": 1e-6,
        "pos_resize": "bilinear",
        "pos_resize_when": "tokens",
        "resize_to": "input",
        "loss_averaging": "all",
        "drop_path_on": "ffn",
        "aux_levels": (),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    if not prefix:
        return Found(fields | {"head": "none"}, rows)
    if "decode_head.cls_emb" in shapes or (
        "decode_head.norm.weight" not in shapes and "neck.norm.0.weight" not in shapes
    ):
        return _find_segmenter(shapes, fields, rows)
    fields["conv_bias"] = False
    if "neck.norm.0.weight" in shapes:
        return _find_mla(shapes, fields, rows)
    return _find_up(shapes, fields, rows)


def _find_segmenter(shapes: Shapes, fields: Fields, rows: int) -> Found:
    fields |= {"pos_resize": "bicubic", "mean": _HALF, "std": _HALF, "cosine_eps": 1e-12}
    if "decode_head.cls_emb" in shapes:
        fields |= {"head": "mask", "decoder_layer_norm_eps": 1e-5, "decoder_norm_eps": 1e-5, **_MASK.fields(shapes)}
    else:
        fields |= {"head": "linear", "num_classes": shapes.need("decode_head.conv_seg.weight", 4)[0]}
    return Found(fields, rows, stride=lambda side: max(side - 32, 1))


def _find_up(shapes: Shapes, fields: Fields, rows: int) -> Found:
    stages = shapes.count("decode_head.up_convs.{}.0.conv.weight")
    head = "naive" if stages == 1 else "pup"
    fields |= {"head": head, "class_token": "keep", **_up_head("decode_head.", max(stages, 1)).main_fields(shapes)}
    scales = {1: (4,), 4: (2, 2, 2, 2)}.get(stages)
    found = Found(fields, rows, ((9, 14, 19, 23),) if fields["depth"] == 24 else ())
    found.asked = ask_scales("head_scales", scales, fields)
    found.levels = aux = shapes.count("auxiliary_head.{}.norm.weight")
    fields["aux_levels"] = tuple(range(aux))
    if aux:
        stages = shapes.count("auxiliary_head.0.up_convs.{}.0.conv.weight")
        fields |= _up_head("auxiliary_head.0.", max(stages, 1)).aux_fields(shapes)
        found.asked |= ask_scales("aux_scales", (4,) * stages if stages in (1, 2) else None, fields)
    return found


def _find_mla(shapes: Shapes, fields: Fields, rows: int) -> Found:
    levels = shapes.count("neck.norm.{}.weight")
    aux = shapes.count("auxiliary_head.{}.conv_seg.weight")
    fields |= {
        "head": "mla",
        "class_token": "drop",
        "deep_first": True,
        "aux_levels": tuple(levels - 1 - j for j in range(aux)),
        "aux_bias": "auxiliary_head.0.conv_seg.bias" in shapes,
        **_mla(levels).fields(shapes),
    }
    return Found(fields, rows, ((5, 11, 17, 23),) if fields["depth"] == 24 else (), levels=levels)


def _rules(spec: ModelSpec) -> list[Rule]:
    rules = _encoder("" if spec.head == "none" else "backbone.").rules(spec)
    aux = range(len(spec.aux_levels))
    if spec.head == "mask":
        rules += _MASK.rules(spec)
    if spec.head == "linear":
        rules += affine("decode_head.conv_seg.", "head.classifier", CONV_1X1)
    if spec.head == "mla":
        rules += _mla(len(spec.taps)).rules(spec.conv_bias)
        for j in aux:
            rules += affine(f"auxiliary_head.{j}.conv_seg.", f"aux_heads.{j}.classifier", bias=spec.aux_bias)
    if spec.head in ("naive", "pup"):
        rules += _up_head("decode_head.", len(spec.head_scales)).rules("head", spec.conv_bias)
        for j in aux:
            keys = _up_head(f"auxiliary_head.{j}.", len(spec.aux_scales))
            rules += keys.rules(f"aux_heads.{j}", spec.conv_bias)
    return rules


def _read_config(values: Mapping[str, Any], found: Found) -> Fields:
    fields = shared_fields(values)
    model = at(values, "model") or {}
    backbone, decode, aux = at(model, "backbone") or {}, at(model, "decode_head") or {}, auxiliary_heads(values)
    head, depth = found.fields["head"], found.fields["depth"]
    cls = at(backbone, "with_cls_token")
    eps = at(backbone, "norm_cfg", "eps")
    fields |= given(
        class_token=None if cls is None else "keep" if cls else "drop",
        pos_resize=at(backbone, "interpolate_mode"),
        layer_norm_eps=eps,
        final_norm_eps=eps,
    )
    if head in ("linear", "mask", "none"):
        return fields | given(
            decoder_num_heads=at(decode, "num_heads"),
            decoder_dropout=at(decode, "dropout_ratio"),
            decoder_drop_path=at(decode, "drop_path_rate"),
        )
    out = at(backbone, "out_indices")
    if isinstance(out, (list, tuple)) and all(isinstance(index, int) for index in out):
        fields["taps"] = tuple(index % depth for index in out)
    inputs = [at(a, "in_index") for a in aux]
    if len(inputs) == len(found.fields["aux_levels"]) and all(isinstance(index, int) for index in inputs):
        deepest = found.levels - 1
        fields["aux_levels"] = tuple(deepest - index for index in inputs) if head == "mla" else tuple(inputs)
    if head == "mla":
        return fields | given(branch_scale=at(decode, "up_scale"))
    for field, part in (("head_scales", decode), ("aux_scales", aux[0] if aux else {})):
        count, scale = at(part, "num_convs"), at(part, "up_scale")
        if isinstance(count, int) and isinstance(scale, int):
            fields[field] = (scale,) * count
    return fields


MMSEG = Family(
    name="mmseg",
    title="mmsegmentation",
    detect=_detect,
    find=_find,
    rules=_rules,
    prepare=number_the_one_auxiliary_head,
    config_form="mmseg",
    read_config=_read_config,
)
