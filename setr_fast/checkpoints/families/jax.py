"""Google's vision transformers (JAX, Flax): ``.npz`` of an encoder, keys with slashes.

Source: github google-research/vision_transformer; AugReg, arXiv 2106.10270.
"""

from __future__ import annotations

from torch import Tensor

from setr_fast.checkpoints.families.family import Family, Found, Shapes, common, ratio
from setr_fast.checkpoints.rules import (
    FLAX_CONV,
    SAME,
    TRANSPOSED,
    Dropped,
    Rule,
    Transform,
    flax_out,
    flax_qkv,
    flax_qkv_bias,
    same,
)
from setr_fast.models.spec import ModelSpec

_POS = "Transformer/posembed_input/pos_embedding"
_BLOCK = "Transformer/encoderblock_{}/"
_ATTENTION = "MultiHeadDotProductAttention_1/"
_NORM = "Transformer/encoder_norm/"


_PREFIX = "opt/target/"  # of files that were written with the optimizer


def _prepare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefix; vectors may be stored as [1, 1, 1, D]."""
    return {
        name.removeprefix(_PREFIX): tensor.flatten() if tensor.ndim == 4 and tensor.shape[:3] == (1, 1, 1) else tensor
        for name, tensor in tensors.items()
    }


def _find(shapes: Shapes) -> Found:
    patch, _, in_chans, width = shapes.need("embedding/kernel", 4)
    heads = shapes.need(_BLOCK.format(0) + _ATTENTION + "query/kernel", 3)[1]
    depth = shapes.blocks(_BLOCK)
    hidden = common(
        (shapes.need(_BLOCK.format(i) + "MlpBlock_3/Dense_0/kernel", 2)[1] for i in range(depth)),
        shapes.where,
        "widths of the MLPs",
    )
    fields = {
        "width": width,
        "in_chans": in_chans,
        "patch_size": patch,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": ratio(hidden, width),
        "final_norm": _NORM + "scale" in shapes,
        "layer_norm_eps": 1e-6,
        "final_norm_eps": 1e-6,
        "pos_resize": "bilinear",
        "head": "none",
        "aux_levels": (),
        "mean": (127.5, 127.5, 127.5),
        "std": (127.5, 127.5, 127.5),
    }
    return Found(fields, shapes.need(_POS, 3)[1] - 1)


def _rules(spec: ModelSpec) -> list[Rule]:
    rules = [
        Rule(("embedding/kernel",), "encoder.patch_embed.weight", FLAX_CONV),
        same("embedding/bias", "encoder.patch_embed.bias"),
        same("cls", "encoder.cls_token"),
        same(_POS, "encoder.pos_embed"),
    ]
    for index in range(spec.depth):
        theirs, ours = _BLOCK.format(index), f"encoder.blocks.{index}."
        attention = theirs + _ATTENTION
        parts = ("query", "key", "value")
        rules += [
            *_layer(theirs + "LayerNorm_0/", ours + "norm1", norm=True),
            Rule(
                tuple(f"{attention}{part}/kernel" for part in parts),
                ours + "attn.qkv.weight",
                flax_qkv(spec.num_heads),
            ),
            Rule(
                tuple(f"{attention}{part}/bias" for part in parts),
                ours + "attn.qkv.bias",
                flax_qkv_bias(spec.num_heads),
            ),
            *_layer(attention + "out/", ours + "attn.proj", flax_out(spec.num_heads)),
            *_layer(theirs + "LayerNorm_2/", ours + "norm2", norm=True),
            *_layer(theirs + "MlpBlock_3/Dense_0/", ours + "mlp.fc1"),
            *_layer(theirs + "MlpBlock_3/Dense_1/", ours + "mlp.fc2"),
        ]
    return rules + (_layer(_NORM, "encoder.norm", norm=True) if spec.final_norm else [])


def _layer(source: str, target: str, kernel: Transform = TRANSPOSED, norm: bool = False) -> list[Rule]:
    weight = Rule((source + ("scale" if norm else "kernel"),), target + ".weight", SAME if norm else kernel)
    return [weight, same(source + "bias", target + ".bias")]


JAX = Family(
    name="jax",
    title="Google's ViT (JAX)",
    detect=lambda shapes: "embedding/kernel" in shapes or _PREFIX + "embedding/kernel" in shapes,
    find=_find,
    rules=_rules,
    prepare=_prepare,
    dropped=(Dropped(r"(head|pre_logits)/(kernel|bias)", "ImageNet's classifier"),),
)
