"""A model whose blocks multiply 8-bit numbers, made from calibration windows, with a report on every layer.

One pass in float32, of the windows and pictures made of them, goes block by block: the range of each layer's input is
taken from some, the layer is rounded, and both answers of all to the same input are compared. Then the whole model is
compared with itself: layers go back to wider numbers, as many as the classes need to agree, also on what no range was
taken from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast import ops
from setr_fast.models.mapping import release
from setr_fast.models.model import SegmentationModel
from setr_fast.nn.block import Block
from setr_fast.ops.upsample_argmax import upsample_argmax
from setr_fast.precision.block import LAYERS, InferenceBlock, Norm, layer_of, norm_of, steps
from setr_fast.precision.heads import ByteAttention, heads_of_bytes
from setr_fast.precision.linears import (
    ByteRange,
    Fp8Linear,
    HalfLinear,
    Int8Linear,
    PlainLinear,
    byte_levels,
    smoothing,
)
from setr_fast.precision.report import ATTENTION, Layer, Report, costliest_first, first_guess
from setr_fast.precision.tree import with_modules

AGREEMENT = 0.99
"""Share of pixels that must have the class that float32 gives them, also in pictures that come later."""
RESERVE = 0.5
"""Of the pixels that may differ, this share may in calibration: of pictures that came later, up to 2.1 times as many
did."""
MARGIN = 1.1
"""Ranges seen in calibration times this: other pictures reach a little further."""
HEADS_MARGIN = 1.5
"""The same for queries, keys and values, which reach further: beyond 1.1 times, attention had 38 dB instead of 51."""
MOST_WINDOWS = 4
"""Windows that calibration looks at."""

_CLOSE = 8
"""The search for how many layers go back ends within an eighth of their number."""


Rounded = Int8Linear | Fp8Linear


@dataclass(frozen=True)
class Kind:
    """A way to round: a layer from its float32 layer, inputs of it, and whether the channels of these can be divided
    where they are made; what layers that lose too much become."""

    make: Callable[[nn.Linear, Tensor, bool], Rounded]
    wider: Callable[[nn.Linear], nn.Module]
    seen_with: Callable[[Tensor], Tensor]
    """What ranges are taken from beside the windows, made of the first."""


@dataclass
class _Seen:
    """The calibrated layers of one block."""

    layers: dict[str, Rounded]
    heads: ByteAttention | None = None

    def smooth(self, layer: str) -> Tensor | None:
        """Return what the inputs of a layer are divided by."""
        rounded = self.layers[layer]
        return rounded.smooth if isinstance(rounded, Int8Linear) else None


class _Observer(nn.Module):
    """Runs a block in float32 and keeps its layers rounded, with their errors.

    Ranges and signal to noise ratios are those of the first ``known`` pictures, noise that of all.
    """

    def __init__(
        self, name: str, block: Block, kind: Kind, known: int, seen: dict[str, _Seen], layers: list[Layer]
    ) -> None:
        super().__init__()
        self.name, self.block, self.kind, self.known, self.seen, self.layers = name, block, kind, known, seen, layers

    def forward(self, x_BND: Tensor) -> Tensor:
        tokens = x_BND[..., 0].numel()
        x_BND, known = steps(self.block, x_BND)
        power = max(float(torch.linalg.vector_norm(x_BND)) ** 2, 1e-30)
        found = self.seen[self.name] = _Seen({})
        for name in LAYERS:
            inputs, outputs = known[name]
            ranged = inputs[: self.known]
            low, high = ranged.aminmax()
            layer = layer_of(self.block, name)
            # GELU stands between fc2 and the product in front of it, so nothing can be done to its channels.
            rounded = self.kind.make(layer, ranged, name != "mlp.fc2")
            error = rounded(inputs, gelu=name == "mlp.fc1").float().sub_(outputs)
            found.layers[name] = rounded
            facts = _decibels(outputs[: self.known], error[: self.known]), float(low), float(high)
            noise, work = self._on_the_stream(name, error, known) / power, tokens * layer.weight.numel()
            self.layers.append(Layer(f"{self.name}.{name}", *facts, noise, float(work)))
        self._round_attention(found, *known["attn.qkv"], known["attn.proj"][0], power)
        release(self.block.parameters())  # where they are mapped, only one block's are in memory at a time
        return x_BND

    def _on_the_stream(self, name: str, error: Tensor, known: dict[str, tuple[Tensor, Tensor]]) -> float:
        """Return the power of a layer's error where the residual sum takes it up."""
        block = self.block
        if name == "attn.qkv":
            heads, before = known["attn.proj"][0], known[name][1]
            error = ops.attention(before + error, block.attn.num_heads).sub_(heads)
        if name.startswith("attn.") and name != "attn.proj":
            error = F.linear(error, block.attn.proj.weight)
        if name == "mlp.fc1":
            error = F.linear(error, block.mlp.fc2.weight)
        return float(torch.linalg.vector_norm(error)) ** 2

    def _round_attention(self, found: _Seen, norm: Tensor, qkv: Tensor, heads: Tensor, power: float) -> None:
        first, behind = found.layers["attn.qkv"], found.layers["attn.proj"]
        ranged = HEADS_MARGIN * qkv[: self.known]
        found.heads = attention = heads_of_bytes(first, self.block.attn.num_heads, ranged, behind)
        if attention is None:
            return
        ins, outs = attention.inputs, attention.outputs
        before, after = found.smooth("attn.qkv"), found.smooth("attn.proj")
        assert before is not None
        assert after is not None
        rounded = attention(ops.to_bytes(norm / before, ins.scale, ins.zero, ins.levels))
        error = rounded.float().sub_(outs.zero).mul_(outs.scale).mul_(after).sub_(heads)
        low, high = (float(value) for value in qkv[: self.known].aminmax())
        facts = _decibels(heads[: self.known], error[: self.known]), low, high
        noise = self._on_the_stream(f"attn.{ATTENTION}", error, {}) / power
        work = 2.0 * heads.numel() * heads.shape[-2]
        self.layers.append(Layer(f"{self.name}.{ATTENTION}", *facts, noise, work))


def int8_model(model: SegmentationModel, windows: Tensor, goal: float = AGREEMENT) -> tuple[SegmentationModel, Report]:
    """Return the model with its blocks' products in bytes where the answers stay, and the report.

    Shapes: windows as the model takes them, uint8 [b, H, W, 3] or normalised [b, C, H, W].
    Raises: BackendError where this torch cannot multiply bytes.
    """
    levels = byte_levels()

    def make(layer: nn.Linear, inputs: Tensor, free: bool) -> Int8Linear:
        smooth = smoothing(inputs, layer.weight) if free else None
        inputs = inputs if smooth is None else inputs / smooth
        low, high = inputs.aminmax()
        reach = ByteRange(MARGIN * float(low), MARGIN * float(high), levels)
        return Int8Linear(layer, reach, smooth)

    return _rounded_model(model, windows, goal, Kind(make, PlainLinear, negative))


def fp8_model(model: SegmentationModel, windows: Tensor, goal: float = AGREEMENT) -> tuple[SegmentationModel, Report]:
    """Return the model with its blocks' products in float8 where the answers stay, else in bfloat16, and the report.

    Unmeasured: made for cards of capability 8.9 and newer; a CPU computes the same numbers slowly.
    Shapes: as ``int8_model``.
    """
    return _rounded_model(
        model, windows, goal, Kind(lambda layer, *_: Fp8Linear(layer), HalfLinear, lambda window: window[:0])
    )


def _rounded_model(
    model: SegmentationModel, windows: Tensor, goal: float, kind: Kind
) -> tuple[SegmentationModel, Report]:
    seen: dict[str, _Seen] = {}
    layers: list[Layer] = []
    windows = windows[:MOST_WINDOWS]
    count = len(windows)
    ranged = torch.cat((windows[::2], kind.seen_with(windows[:1])))
    odd_one = stranger(windows[:1])

    def observe(name: str, module: nn.Module) -> nn.Module | None:
        return _Observer(name, module, kind, len(ranged), seen, layers) if isinstance(module, Block) else None

    known = _classes(with_modules(model, observe), torch.cat((ranged, windows[1::2], odd_one)))
    places = [at // 2 + at % 2 * len(ranged) for at in range(count)]
    exact, deciding = known[[*places, -1]], torch.cat((windows, odd_one))
    report = Report(layers, count)
    order = costliest_first(layers)
    goal = 1 - RESERVE * (1 - goal)

    def attempt(wider: int) -> SegmentationModel:
        report.kept_float = [layer.name for layer in order[:wider]]
        candidate = _assembled(model, kind, seen, set(report.kept_float))
        report.agreement = float((_classes(candidate, deciding) == exact).double().mean((1, 2)).min())
        return candidate

    candidate, fails, works, wider = attempt(0), 0, len(order), 0
    if report.agreement >= goal:
        return candidate, report
    following = first_guess(order, 1 - report.agreement, 1 - goal)
    while works - fails > max(works // _CLOSE, 1):
        wider = min(max(following, fails + 1), works - 1)
        candidate = attempt(wider)
        fails, works = (fails, wider) if report.agreement >= goal else (wider, works)
        following = (fails + works) // 2
    return (candidate if wider == works else attempt(works)), report


def negative(window: Tensor) -> Tensor:
    """Return a picture's negative: ranges of one picture alone are too narrow for others, which may be dark where it is
    bright."""
    return 255 - window if window.dtype is torch.uint8 else -window


def stranger(window: Tensor) -> Tensor:
    """Return a picture that no range was taken from: mirrored and upside down, paler, its channels exchanged."""
    if window.dtype is torch.uint8:
        return window.flip(1, 2).roll(1, -1) // 2 + 32
    return 0.5 * window.flip(-2, -1).roll(1, 1)


def _assembled(model: SegmentationModel, kind: Kind, seen: dict[str, _Seen], kept: set[str]) -> SegmentationModel:
    def exchange(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, Block):
            return None
        if name not in seen:
            return module  # behind the last tap: in the file, but never run
        found = seen[name]
        rounded = {layer: f"{name}.{layer}" not in kept for layer in LAYERS}

        def norm(layer: str) -> Norm:
            before = norm_of(module, layer)
            assert before is not None
            return Norm(before, found.smooth(layer) if rounded[layer] else None)

        for layer in found.layers.values():
            layer.outputs = None  # the candidate before may have had other neighbours
        products = tuple(
            found.layers[layer] if rounded[layer] else kind.wider(layer_of(module, layer)) for layer in LAYERS
        )
        whole = rounded["attn.qkv"] and rounded["attn.proj"] and f"{name}.{ATTENTION}" not in kept
        heads = found.heads if whole else None
        return InferenceBlock(module.attn.num_heads, (norm("attn.qkv"), norm("mlp.fc1")), products, heads)

    return with_modules(model, exchange)


def _classes(model: SegmentationModel, windows: Tensor) -> Tensor:
    grid = model.grid(windows)
    return upsample_argmax(model.logits(windows), model.resize_size(grid), model.spec.align_corners, grid.image)


def _decibels(signal: Tensor, error: Tensor) -> float:
    power, noise = (float(torch.linalg.vector_norm(values)) for values in (signal, error))
    return 20 * math.log10(max(power, 1e-30) / max(noise, 1e-30))
