"""Attention between products of bytes: how far from float32, and when it is left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import setr_fast
from setr_fast import ops
from setr_fast.errors import ShapeError
from setr_fast.models.model import SegmentationModel
from setr_fast.ops.attention_bytes import serves
from setr_fast.precision.heads import heads_of_bytes
from setr_fast.precision.linears import ByteRange, Int8Linear, PlainLinear, byte_levels
from setr_fast.precision.rounding import int8_model

HEADS = 2
Make = Callable[..., SegmentationModel]


def range_of(values: Tensor) -> ByteRange:
    return ByteRange(float(values.min()), float(values.max()), byte_levels())


@pytest.mark.skipif(not serves(32), reason="no VNNI: attention stays in float32 there")
def test_unlike_channels_keep_their_levels() -> None:
    """Channels of queries and keys of unlike sizes: held to a rounding with one step for all of them."""
    layer = nn.Linear(64, 3 * 64)
    x = torch.randn(2, 150, 64)
    with torch.inference_mode():
        layer.weight[:64] *= torch.logspace(-1, 1, 64)[:, None]
        layer.weight[64:128] /= torch.logspace(-1, 1, 64)[:, None]
        qkv = layer(x)
        exact = ops.attention(qkv.double(), HEADS)
        first = Int8Linear(layer, range_of(x))
        attention = heads_of_bytes(first, HEADS, qkv, Int8Linear(nn.Linear(64, 8), range_of(exact)))
        assert attention is not None
        found = attention(ops.to_bytes(x, first.inputs.scale, first.inputs.zero, first.inputs.levels))
        error = (found.double() - attention.outputs.zero) * attention.outputs.scale - exact
        parts = qkv.double().unflatten(-1, (3, 64))
        step = parts.abs().amax((0, 1, 3), keepdim=True) / 127
        plainly = ops.attention(((parts / step).round() * step).flatten(2), HEADS) - exact
    assert error.norm() < 0.02 * exact.norm()
    assert error.norm() < 0.5 * plainly.norm()


def test_without_a_kernel_or_bytes_behind_attention_stays_float() -> None:
    layer, behind = nn.Linear(32, 96), nn.Linear(32, 8)
    answer, reach = torch.randn(1, 5, 96), ByteRange(-3.0, 3.0, byte_levels())
    rounded = Int8Linear(layer, reach), Int8Linear(behind, reach)
    assert heads_of_bytes(rounded[0], 1, answer, PlainLinear(behind)) is None
    assert heads_of_bytes(PlainLinear(layer), 1, answer, rounded[1]) is None
    with setr_fast.backend("reference"):
        assert heads_of_bytes(rounded[0], 1, answer, rounded[1]) is None


def test_a_tap_is_not_written_to_by_the_block_behind_it(make_model: Make, windows: Tensor) -> None:
    model = make_model()
    with torch.inference_mode():
        rounded = int8_model(model, windows, goal=0.0)[0]
        x = torch.randn(1, 12, 64)
        before = x.clone()
        rounded.encoder.blocks[0](x)
    assert torch.equal(x, before)


def test_shapes_that_are_no_heads_are_refused_in_words() -> None:
    qkv, factor = torch.zeros(1, 4, 3, 2, 16, dtype=torch.uint8), torch.ones(2)
    with pytest.raises(ShapeError, match="qkv must be uint8"):
        ops.attention_bytes(qkv.float(), factor, torch.ones(2, 16), 128)
    with pytest.raises(ShapeError, match=r"value_factor must be float32 \[2, 16\], got float32 \[32\]"):
        ops.attention_bytes(qkv, factor, torch.ones(32), 128)
    with pytest.raises(ShapeError, match="zero must be"):
        ops.attention_bytes(qkv, factor, torch.ones(2, 16), 300)
    with pytest.raises(ShapeError, match="weight must be float32"):
        ops.layer_norm_bytes(torch.ones(2, 4), torch.ones(3), torch.ones(4), 1e-6, 0.1, 0)
