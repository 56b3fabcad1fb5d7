"""PaddleViT: ``.pdparams`` of SETR and Segmenter, and encoders in its format (no ``encoder.``).

Linear weights are [in, out], convolutions as in PyTorch. The heads are named as official SETR's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setr_fast.checkpoints.families.encoder import TIMM_PARTS, BlockKeys, EncoderKeys
from setr_fast.checkpoints.families.family import Family, Fields, Found, Shapes, at, given, pair
from setr_fast.checkpoints.families.heads import MaskKeys, MlaKeys, up_scales
from setr_fast.checkpoints.families.segmenter import NORMALISATION
from setr_fast.checkpoints.families.setr_official import ask_scales, mla_keys, up_head_keys
from setr_fast.checkpoints.rules import TRANSPOSED, Dropped, Rule, affine
from setr_fast.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

_PARTS = {
    "norm1": "attn_norm.",
    "attn.qkv": "attn.qkv.",
    "attn.proj": "attn.out.",
    "norm2": "mlp_norm.",
    "mlp.fc1": "mlp.fc1.",
    "mlp.fc2": "mlp.fc2.",
}
_MASK = MaskKeys(
    class_embed="decoder.mask_tokens",
    proj_in="decoder.proj_decoder.",
    blocks=BlockKeys("decoder.layers.{}.", _PARTS, paddle=True),
    proj_patch="decoder.proj_patch.weight",
    proj_class="decoder.proj_class.weight",
    norm="decoder.decoder_norm.",
    mask_norm="decoder.mask_norm.",
    linear=TRANSPOSED,
)
_TAPS = {"naive": (9, 14, 19, 23), "pup": (9, 14, 19, 23), "mla": (5, 11, 17, 23)}
_EMBEDDINGS = "transformer.embeddings."


def _encoder(prefix: str, deit: bool) -> EncoderKeys:
    """Names of ViT or DeiT; a Segmenter's norm stands outside its encoder."""
    outside = "norm."
    if deit:
        return EncoderKeys(
            cls=prefix + "class_token",
            pos=prefix + "pos_embed",
            patch=prefix + "patch_embed.proj.",
            blocks=BlockKeys(prefix + "layers.{}.", TIMM_PARTS, paddle=True),
            norm=outside,
            dist=prefix + "distill_token",
        )
    return EncoderKeys(
        cls=f"{prefix}{_EMBEDDINGS}cls_token",
        pos=f"{prefix}{_EMBEDDINGS}position_embeddings",
        patch=f"{prefix}{_EMBEDDINGS}patch_embeddings.",
        blocks=BlockKeys(prefix + "transformer.encoder.layers.{}.", _PARTS, paddle=True),
        norm=outside if prefix else "transformer.encoder.encoder_norm.",
    )


def _mla(levels: int) -> MlaKeys:
    return mla_keys("encoder.", "decoder.", "decoder.cls.", levels)


def _first(shapes: Shapes) -> tuple[str, bool] | None:
    """Return (prefix, is DeiT) of the encoder, or None."""
    for prefix in ("encoder.", ""):
        if f"{prefix}{_EMBEDDINGS}cls_token" in shapes:
            return prefix, False
        if prefix + "class_token" in shapes:
            return prefix, True
    return None


def _find(shapes: Shapes) -> Found:
    prefix, deit = _first(shapes) or ("encoder.", False)
    keys = _encoder(prefix, deit)
    fields, rows = keys.fields(shapes)
    segmenter = "decoder.mask_tokens" in shapes or "decoder.head.weight" in shapes
    fields |= {
        "final_norm": segmenter or (not prefix and keys.norm + "weight" in shapes),
        "layer_norm_eps": 1e-6,
        "final_norm_eps": 1e-5 if segmenter else 1e-6,
        "head_norm_eps": 1e-6,
        "pos_resize": "none",
        "resize_to": "input",
        "loss_averaging": "valid",
        "aux_levels": (),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "resize_rule": "tensor",
    }
    if not prefix:
        return Found(fields | {"head": "none", "pos_resize": "bilinear"}, rows)
    if segmenter:
        return _find_segmenter(shapes, fields, rows)
    fields["class_token"] = "drop"
    head = "mla" if "encoder.mla.mla_p2.0.weight" in shapes else ""
    if head:
        levels = shapes.count("encoder.mla.mla_p{}.0.weight", start=2)
        # One auxiliary head more is built than the forward pass calls.
        aux = min(shapes.count("aux_decoder{}.aux.weight", start=2), levels - 1)
        fields |= {"head": head, "head_align_corners": True, "aux_levels": tuple(range(aux))}
        fields |= {"aux_bias": "aux_decoder2.aux.bias" in shapes, **_mla(levels).fields(shapes)}
        return Found(fields, rows, (_TAPS[head],) if fields["depth"] == 24 else (), levels=levels)
    stages = shapes.count("decoder.conv_{}.weight") - 1
    head = "naive" if stages == 1 else "pup"
    fields |= {"head": head, **up_head_keys("decoder.", max(stages, 1)).main_fields(shapes)}
    found = Found(fields, rows, (_TAPS[head],) if fields["depth"] == 24 else ())
    found.asked = ask_scales("head_scales", up_scales(head, stages, main=True), fields)
    found.levels = aux = shapes.count("aux_decoder{}.norm.weight", start=2)
    fields["aux_levels"] = tuple(range(aux))
    if aux:
        stages = shapes.count("aux_decoder2.conv_{}.weight") - 1
        fields |= up_head_keys("aux_decoder2.", max(stages, 1)).aux_fields(shapes)
        found.asked |= ask_scales("aux_scales", up_scales(head, stages, main=False), fields)
    return found


def _find_segmenter(shapes: Shapes, fields: Fields, rows: int) -> Found:
    fields |= {"decoder_layer_norm_eps": 1e-6, "decoder_norm_eps": 1e-5, "cosine_eps": 0.0}
    if not fields["distilled"]:
        fields |= NORMALISATION["vit"]
    if "decoder.mask_tokens" in shapes:
        fields |= {"head": "mask", **_MASK.fields(shapes)}
    else:
        fields |= {"head": "linear", "num_classes": shapes.need("decoder.head.weight", 2)[1]}
    return Found(fields, rows, decoder_heads="encoder", stride=lambda side: side)


def _rules(spec: ModelSpec) -> list[Rule]:
    rules = _encoder("" if spec.head == "none" else "encoder.", spec.distilled).rules(spec)
    aux = range(len(spec.aux_levels))
    if spec.head == "mask":
        rules += _MASK.rules(spec)
    if spec.head == "linear":
        rules += affine("decoder.head.", "head.classifier", TRANSPOSED)
    if spec.head == "mla":
        rules += _mla(len(spec.taps)).rules(spec.conv_bias, paddle=True)
        for j in aux:
            rules += affine(f"aux_decoder{j + 2}.aux.", f"aux_heads.{j}.classifier", bias=spec.aux_bias)
    if spec.head in ("naive", "pup"):
        rules += up_head_keys("decoder.", len(spec.head_scales)).rules("head", spec.conv_bias, paddle=True)
        for j in aux:
            keys = up_head_keys(f"aux_decoder{j + 2}.", len(spec.aux_scales))
            rules += keys.rules(f"aux_heads.{j}", spec.conv_bias, paddle=True)
    return rules


def _read_config(values: Mapping[str, Any], found: Found) -> Fields:
    model, data = at(values, "MODEL") or {}, at(values, "DATA") or {}
    taps = at(model, "ENCODER", "OUT_INDICES")
    keep = at(model, "TRANS", "KEEP_CLS_TOKEN")
    crop = pair(at(data, "CROP_SIZE"))
    return given(
        num_classes=at(data, "NUM_CLASSES"),
        num_heads=at(model, "TRANS", "NUM_HEADS"),
        taps=tuple(taps) if taps and found.fields["head"] not in ("linear", "mask", "none") else None,
        class_token=None if keep is None else "keep" if keep else "drop",
        grid_size=crop,
        image_size=crop,
        dropout=at(model, "DROPOUT"),
        aux_weight=at(model, "AUX", "AUX_WEIGHT"),
        stride=pair(at(values, "VAL", "STRIDE_SIZE"), swap=True),
    )


PADDLEVIT = Family(
    name="paddlevit",
    title="PaddleViT",
    detect=lambda shapes: _first(shapes) is not None,
    find=_find,
    rules=_rules,
    dropped=(
        Dropped(r"StructuredToParameterName@@", "Paddle's table of internal names"),
        Dropped(r"aux_decoder5\.aux\.(weight|bias)", "MLA's fourth auxiliary head is built but never called"),
        Dropped(r"(encoder\.)?transformer\.encoder\.encoder_norm\.(weight|bias)", "ImageNet's final norm, never run"),
        Dropped(r"(classifier\d*|head|head_distill|pre_logits.*)\.(weight|bias)", "ImageNet's classifier, never run"),
    ),
    config_form="paddle",
    read_config=_read_config,
)
