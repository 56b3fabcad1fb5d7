"""Products of bytes: what they compute, what the report says, and that layers go back until the classes agree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from setr_fast import ops
from setr_fast.models.model import SegmentationModel
from setr_fast.ops.attention_bytes import serves
from setr_fast.precision import linears, rounding
from setr_fast.precision.block import InferenceBlock
from setr_fast.precision.linears import ByteRange, Int8Linear, PlainLinear
from setr_fast.precision.report import Layer, costliest_first
from setr_fast.precision.rounding import int8_model

Make = Callable[..., SegmentationModel]


def by_hand(layer: nn.Linear, x: Tensor, reach: ByteRange, gelu: bool = False) -> Tensor:
    """Return the product of rounded numbers, in float64."""
    inverse = torch.tensor(1.0 / reach.scale, dtype=torch.float32)
    whole = ((x * inverse).round() + reach.zero).clamp(0, reach.levels).double() - reach.zero
    scale = layer.weight.detach().abs().amax(1) / 127
    weight = (layer.weight.detach() / scale[:, None]).round().double() * scale[:, None].double()
    y = whole * reach.scale @ weight.T + layer.bias.detach().double()
    return torch.nn.functional.gelu(y) if gelu else y


@pytest.mark.parametrize("gelu", [False, True])
def test_a_layer_multiplies_what_rounding_leaves(gelu: bool) -> None:
    layer = nn.Linear(70, 33)
    x = torch.randn(2, 9, 70) * 3 + 1
    reach = ByteRange(float(x.min()), float(x.max()), linears.byte_levels())
    rounded = Int8Linear(layer, reach)
    truth = by_hand(layer, x, reach, gelu)
    torch.testing.assert_close(rounded(x, gelu=gelu).double(), truth, atol=1e-4, rtol=1e-4)
    onto = torch.randn(2, 9, 33)
    if not gelu:
        want = onto.double() + truth
        torch.testing.assert_close(rounded(x, onto=onto).double(), want, atol=1e-4, rtol=1e-4)
        assert not torch.equal(onto, onto + 0 * want.float() + truth.float()), "the sum is made in place"


def test_bytes_for_the_next_layer_are_what_it_would_make_itself() -> None:
    first, second = nn.Linear(40, 64), nn.Linear(64, 8)
    x = torch.randn(5, 40)
    a = Int8Linear(first, ByteRange(float(x.min()), float(x.max()), linears.byte_levels()))
    hidden = a(x, gelu=True)
    b = Int8Linear(second, ByteRange(float(hidden.min()), float(hidden.max()), linears.byte_levels()))
    apart = b(hidden)
    a.outputs = b.inputs
    assert a(x, gelu=True).dtype is torch.uint8
    torch.testing.assert_close(b(a(x, gelu=True)), apart, atol=2 * b.inputs.scale, rtol=0.02)


def test_seven_bits_fit_where_pairs_are_summed_in_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    linears.byte_levels.cache_clear()
    try:
        levels = linears.byte_levels()
        assert levels == 127
        assert 2 * levels * 127 < 2**15
    finally:
        linears.byte_levels.cache_clear()


def test_a_processor_without_vnni_gives_the_same_product(tmp_path: Path) -> None:
    """oneDNN held to AVX2 instructions, in a process of its own: the worst case for sums in 16 bits."""
    script = """
import torch
from torch import nn
from setr_fast.precision.linears import ByteRange, Int8Linear
layer = nn.Linear(64, 16)
nn.init.constant_(layer.weight, 0.5)
x = torch.full((4, 64), 2.0)
y = Int8Linear(layer, ByteRange(0.0, 2.0, 127))(x)
torch.testing.assert_close(y, layer(x), atol=0.5, rtol=0.01)
print("same")
"""
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout.strip() == "same", told.stderr[-2000:]


@pytest.mark.parametrize("name", ["setr_pup_vit_t16", "segmenter_mask_vit_t16"])
def test_every_block_is_rounded_and_the_classes_stay(name: str, make_model: Make, windows: Tensor) -> None:
    model = make_model(name)
    with torch.inference_mode():
        found, report = int8_model(model, windows, goal=0.9)
        plain, rounded = model.logits(windows), found.logits(windows)
    blocks = [m for m in found.modules() if isinstance(m, InferenceBlock)]
    assert len(blocks) == 2 + (2 if "mask" in name else 0)
    assert len(report.layers) == (5 if serves(32) else 4) * len(blocks)
    assert all(layer.sqnr_db > 25 for layer in report.layers), report.layers
    assert report.agreement >= 0.9
    assert (rounded - plain).norm() < 0.1 * plain.norm()
    assert not torch.equal(rounded, plain)


def test_layers_go_back_until_the_classes_agree(make_model: Make, windows: Tensor) -> None:
    model = make_model()
    with torch.inference_mode():
        found, report = int8_model(model, windows, goal=1.1)  # never reached: everything goes back
        plain = model.logits(windows)
        torch.testing.assert_close(found.logits(windows), plain, atol=1e-4, rtol=1e-4)
    kinds = [type(m) for m in found.modules()]
    assert Int8Linear not in kinds
    assert kinds.count(PlainLinear) == 8
    assert report.kept_float == [layer.name for layer in costliest_first(report.layers)]


def test_few_attempts_find_how_many_layers_go_back(
    make_model: Make, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(depth=6, taps=(0, 5))
    asked: list[int] = []
    assembled = rounding._assembled
    monkeypatch.setattr(rounding, "_assembled", lambda *args: asked.append(len(args[3])) or assembled(*args))
    with torch.inference_mode():
        every = int8_model(model, windows, goal=0.0)[1]
        assert asked == [0]
        goal = (1 + 3 * every.agreement) / 4
        asked.clear()
        found, report = int8_model(model, windows, goal=goal)
        same = (found.logits(windows).argmax(1) == model.logits(windows).argmax(1)).double().mean()
    assert report.agreement >= goal > every.agreement
    assert same > 0.9
    assert 0 < len(report.kept_float) < len(report.layers)
    assert len(asked) <= 7
    assert asked.count(len(report.kept_float)) >= 1


def test_ranges_of_one_picture_hold_for_its_negative(make_model: Make, windows: Tensor) -> None:
    model = make_model()
    dark = windows // 4
    with torch.inference_mode():
        found = int8_model(model, dark[:1], goal=0.0)[0]
        for picture in (dark, 255 - dark):
            plain = model.logits(picture)
            assert (found.logits(picture) - plain).norm() < 0.05 * plain.norm()


@pytest.mark.parametrize("numbers", [True, False])
def test_inputs_are_divided_where_they_are_made_or_before_they_become_bytes(numbers: bool) -> None:
    layer, x = nn.Linear(64, 32), torch.randn(50, 64) * torch.logspace(-1, 1, 64)
    smooth = linears.smoothing(x, layer.weight)
    divided = x / smooth
    reach = ByteRange(float(divided.min()), float(divided.max()), linears.byte_levels())
    rounded = Int8Linear(layer, reach, smooth)
    given = x if numbers else ops.to_bytes(divided, reach.scale, reach.zero, reach.levels)
    with torch.inference_mode():
        off = (rounded(given) - layer(x)).norm() / layer(x).norm()
        plainly = (Int8Linear(layer, ByteRange(float(x.min()), float(x.max()), reach.levels))(x) - layer(x)).norm()
    assert off < 0.02
    assert off < 0.7 * plainly / layer(x).norm()


def test_one_outlying_channel_does_not_cost_the_others_their_levels(make_model: Make, windows: Tensor) -> None:
    model = make_model()
    for block in model.encoder.blocks:
        block.norm1.weight.data[3] = 60.0
        block.attn.qkv.weight.data[:, 3] /= 60.0
    with torch.inference_mode():
        report = int8_model(model, windows, goal=0.0)[1]
    assert all(layer.sqnr_db > 25 for layer in report.layers if layer.name.endswith("qkv")), report.layers


def test_layers_that_cost_much_noise_for_little_go_back_first() -> None:
    def layer(name: str, noise: float, work: float) -> Layer:
        return Layer(f"blocks.0.{name}", 40.0, -1.0, 1.0, noise, work)

    of_block = [layer("attn.qkv", 1, 30), layer("attn.proj", 1, 10), layer("mlp.fc1", 8, 40), layer("mlp.fc2", 2, 40)]
    found = [one.name.removeprefix("blocks.0.") for one in costliest_first(of_block)]
    assert found == ["mlp.fc1", "attn.proj", "mlp.fc2", "attn.qkv"]
    found = [one.name.removeprefix("blocks.0.") for one in costliest_first([*of_block, layer("attn", 0, 90)])]
    assert found == ["mlp.fc1", "mlp.fc2", "attn.proj", "attn.qkv", "attn"], "the products keep attention in bytes"


def test_a_picture_that_no_range_was_taken_from_decides_too(
    make_model: Make, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    with torch.inference_mode():
        found, report = int8_model(model, windows, goal=0.0)
        strange = rounding.stranger(windows[:1])
        pictures = torch.cat((windows, strange))
        same = (rounding._classes(found, pictures) == rounding._classes(model, pictures)).double().mean((1, 2))
        assert report.agreement == float(same.min())
        monkeypatch.setattr(rounding, "stranger", lambda window: (200 * window.float().round()).to(torch.uint8))
        assert int8_model(model, windows, goal=0.0)[1].agreement != report.agreement
