"""Official SETR (github fudan-zvg/SETR): ``.pth`` of mmcv, keys ``backbone.``, ``decode_head.``, ``auxiliary_head.``.

The 1x1 ``conv_seg`` of every head is made by the base class and never runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setr_fast.checkpoints.families.encoder import timm_keys
from setr_fast.checkpoints.families.family import Family, Fields, Found, Shapes, at
from setr_fast.checkpoints.families.heads import MlaKeys, StageKeys, UpHeadKeys, up_scales
from setr_fast.checkpoints.families.mmcv_config import auxiliary_heads, number_the_one_auxiliary_head, shared_fields
from setr_fast.checkpoints.rules import Dropped, Rule, affine
from setr_fast.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

_ENCODER = timm_keys("backbone.", norm=False, dist="")
_DEAD_CHANNELS = 512
_PUP_FACTOR = 16  # between the tokens and what its main head returns
# By depth; FoodSeg103's fork has taps of its own.
_TAPS: dict[str, dict[int, tuple[tuple[int, ...], ...]]] = {
    "naive": {24: ((9, 14, 19, 23),), 12: ((2, 5, 8, 11),)},
    "pup": {24: ((9, 14, 19, 23),), 12: ((4, 7, 9, 11),)},
    "mla": {24: ((5, 11, 17, 23),), 12: ((2, 5, 8, 11), (5, 7, 9, 11))},
}


def up_head_keys(prefix: str, stages: int) -> UpHeadKeys:
    """Names of a head of Naive or PUP; ``prefix`` with its dot. PaddleViT has the same."""
    return UpHeadKeys(
        norm=prefix + "norm.",
        stages=[StageKeys(f"{prefix}conv_{i}.", f"{prefix}syncbn_fc_{i}.") for i in range(stages)],
        classifier=f"{prefix}conv_{stages}.",
    )


def mla_keys(backbone: str, head: str, classifier: str, levels: int) -> MlaKeys:
    """Names of MLA's neck and head; each argument with its dot. PaddleViT has the same, levels count from 2."""
    return MlaKeys(
        norms=[f"{backbone}norm_{n}." for n in range(levels)],
        reduce=[
            StageKeys(f"{backbone}mla.mla_p{n + 2}_1x1.0.", f"{backbone}mla.mla_p{n + 2}_1x1.1.") for n in range(levels)
        ],
        smooth=[StageKeys(f"{backbone}mla.mla_p{n + 2}.0.", f"{backbone}mla.mla_p{n + 2}.1.") for n in range(levels)],
        branches=[
            (
                StageKeys(f"{head}head{n + 2}.0.", f"{head}head{n + 2}.1."),
                StageKeys(f"{head}head{n + 2}.3.", f"{head}head{n + 2}.4."),
            )
            for n in range(levels)
        ],
        classifier=classifier,
    )


def _mla(levels: int) -> MlaKeys:
    return mla_keys("backbone.", "decode_head.mlahead.", "decode_head.cls.", levels)


def _detect(shapes: Shapes) -> bool:
    return "backbone.patch_embed.proj.weight" in shapes and shapes.starts("decode_head.")


def _find(shapes: Shapes) -> Found:
    fields, rows = _ENCODER.fields(shapes)
    fields |= {
        "layer_norm_eps": 1e-6,
        "head_norm_eps": 1e-6,
        "final_norm": False,
        "pos_resize": "none",
        "resize_to": "input",
        "loss_averaging": "all",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    if "backbone.mla.mla_p2.0.weight" in shapes:
        return _find_mla(shapes, fields, rows)
    stages = shapes.count("decode_head.conv_{}.weight") - 1
    main = up_head_keys("decode_head.", max(stages, 1))
    head = "naive" if stages == 1 else "pup"
    fields |= {"head": head, "class_token": "keep", **main.main_fields(shapes)}
    found = Found(fields, rows, _published(head, fields), levels=1)
    scales = up_scales(head, stages, main=True)
    if head == "pup" and scales and fields["patch_size"] != _PUP_FACTOR:  # its last factor is 2, whatever the picture
        scales = (*scales[:-1], 2)
    found.asked = ask_scales("head_scales", scales, fields)
    aux = shapes.count("auxiliary_head.{}.norm.weight")
    fields["aux_levels"] = tuple(range(aux))
    if aux:
        aux_stages = shapes.count("auxiliary_head.0.conv_{}.weight") - 1
        fields |= up_head_keys("auxiliary_head.0.", max(aux_stages, 1)).aux_fields(shapes)
        found.asked |= ask_scales("aux_scales", up_scales(head, aux_stages, main=False), fields)
        found.levels = aux
    return found


def _find_mla(shapes: Shapes, fields: Fields, rows: int) -> Found:
    levels = shapes.count("backbone.mla.mla_p{}.0.weight", start=2)
    aux = shapes.count("auxiliary_head.{}.aux.weight")
    fields |= {
        "head": "mla",
        "class_token": "drop",
        "head_align_corners": True,
        "aux_levels": tuple(range(aux)),
        "aux_bias": "auxiliary_head.0.aux.bias" in shapes,
        **_mla(levels).fields(shapes),
    }
    return Found(fields, rows, _published("mla", fields), levels=levels)


def ask_scales(field: str, scales: tuple[int, ...] | None, fields: Fields) -> dict[str, tuple[Any, ...]]:
    """Set a field of upsampling factors where they are known; return it as a question where not."""
    if scales is None:
        return {field: ()}
    fields[field] = scales
    return {}


def _published(head: str, fields: Fields) -> tuple[tuple[int, ...], ...]:
    taps = _TAPS[head].get(fields["depth"], ())
    if head == "naive" and fields["depth"] == 12 and fields["head_kernel"] == 3:
        return (*taps, (5, 7, 9, 11))
    return taps


def _rules(spec: ModelSpec) -> list[Rule]:
    rules = _ENCODER.rules(spec)
    aux = range(len(spec.aux_levels))
    if spec.head == "mla":
        rules += _mla(len(spec.taps)).rules(spec.conv_bias)
        for j in aux:
            rules += affine(f"auxiliary_head.{j}.aux.", f"aux_heads.{j}.classifier", bias=spec.aux_bias)
        return rules
    rules += up_head_keys("decode_head.", len(spec.head_scales)).rules("head", spec.conv_bias)
    for j in aux:
        keys = up_head_keys(f"auxiliary_head.{j}.", len(spec.aux_scales))
        rules += keys.rules(f"aux_heads.{j}", spec.conv_bias)
    return rules


def _dead(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    heads = ["decode_head", *(f"auxiliary_head.{j}" for j in range(len(spec.aux_levels)))]
    return {
        f"{head}.conv_seg.{leaf}": shape
        for head in heads
        for leaf, shape in (("weight", (spec.num_classes, _DEAD_CHANNELS, 1, 1)), ("bias", (spec.num_classes,)))
    }


def _read_config(values: Mapping[str, Any], found: Found) -> Fields:
    fields = shared_fields(values)
    model = at(values, "model") or {}
    decode, aux = at(model, "decode_head") or {}, auxiliary_heads(values)
    if found.fields["head"] == "mla":
        taps = at(model, "backbone", "mla_index")
        fields.pop("head_align_corners", None)  # the four branches always put corners on corners
        return fields | ({"taps": tuple(taps)} if taps is not None else {})
    used = [at(head, "in_index") for head in (*aux, decode)]
    if all(isinstance(index, int) for index in used) and used:
        depth = found.fields["depth"]
        blocks = [index % depth for index in used]
        taps = tuple(sorted(set(blocks)))
        fields["taps"] = taps
        if len(aux) == len(found.fields["aux_levels"]):  # files may come without auxiliary heads
            fields["aux_levels"] = tuple(taps.index(block) for block in blocks[:-1])
    if at(decode, "num_conv") == 2 and at(decode, "num_upsampe_layer") == 2:
        fields["head_scales"] = (4,)
    if aux and at(aux[0], "num_conv") == 2:
        fields["aux_scales"] = (4,) if at(aux[0], "num_upsampe_layer") == 2 else (1,)
    return fields


SETR = Family(
    name="setr",
    title="official SETR",
    detect=_detect,
    find=_find,
    rules=_rules,
    prepare=number_the_one_auxiliary_head,
    dropped=(
        Dropped(r"(decode_head|auxiliary_head\.\d+)\.conv_seg\.(weight|bias)", "made by the base class, never run"),
        Dropped(r"backbone\.(norm|head|head_dist)\.(weight|bias)", "ImageNet's final norm and classifier, never run"),
    ),
    config_form="mmseg",
    read_config=_read_config,
    dead=_dead,
)
