"""A model whose blocks multiply 8-bit numbers, made from calibration windows, with a report on every layer.

One pass in float32, of the windows and a negative, goes block by block: the range of each layer's input is taken, the
layer is rounded, and both answers to the same input are compared. Then the whole model is compared with itself: the
layers that are worst go back to wider numbers, as many as the classes need to agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
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
from setr_fast.precision.tree import with_modules

AGREEMENT = 0.99
"""Share of pixels that must have the class that float32 gives them."""
MARGIN = 1.1
"""Ranges seen in calibration times this: other pictures reach a little further."""

_CLOSE = 8
"""The search for how many layers go back ends within an eighth of their number."""


@dataclass(frozen=True)
class Layer:
    """One linear layer, rounded, or attention with the product in front of it: the quotient of its answer's power and
    its error's, in decibels."""

    name: str
    sqnr_db: float
    low: float
    high: float


@dataclass
class Report:
    """What calibration found."""

    layers: list[Layer]
    windows: int
    kept_float: list[str] = field(default_factory=list)
    """Layers that stay in float32 (beside float8: in bfloat16), worst first."""
    agreement: float = 1.0
    """Share of the calibration pixels with float32's class."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "windows": self.windows,
            "agreement": self.agreement,
            "kept_float": self.kept_float,
            "sqnr_db": {layer.name: round(layer.sqnr_db, 2) for layer in self.layers},
        }


Rounded = Int8Linear | Fp8Linear
ATTENTION = "attn"
"""What attention is called in the report, beside LAYERS."""


@dataclass(frozen=True)
class Kind:
    """A way to round: a layer from its float32 layer, inputs of it, and whether the channels of these can be divided
    where they are made; what layers that lose too much become."""

    make: Callable[[nn.Linear, Tensor, bool], Rounded]
    wider: Callable[[nn.Linear], nn.Module]
    seen_with: Callable[[Tensor], Tensor]
    """What calibration sees of the windows."""


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
    """Runs a block in float32 and keeps its layers rounded, with their errors."""

    def __init__(self, name: str, block: Block, kind: Kind, seen: dict[str, _Seen], layers: list[Layer]) -> None:
        super().__init__()
        self.name, self.block, self.kind, self.seen, self.layers = name, block, kind, seen, layers

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND, known = steps(self.block, x_BND)
        found = self.seen[self.name] = _Seen({})
        for layer in LAYERS:
            inputs, outputs = known[layer]
            low, high = inputs.aminmax()
            # GELU stands between fc2 and the product in front of it, so nothing can be done to its channels.
            rounded = self.kind.make(layer_of(self.block, layer), inputs, layer != "mlp.fc2")
            error = rounded(inputs, gelu=layer == "mlp.fc1").float().sub_(outputs)
            found.layers[layer] = rounded
            self.layers.append(Layer(f"{self.name}.{layer}", _decibels(outputs, error), float(low), float(high)))
        self._round_attention(found, *known["attn.qkv"], known["attn.proj"][0])
        release(self.block.parameters())  # where they are mapped, only one block's are in memory at a time
        return x_BND

    def _round_attention(self, found: _Seen, norm: Tensor, qkv: Tensor, heads: Tensor) -> None:
        first, behind = found.layers["attn.qkv"], found.layers["attn.proj"]
        found.heads = attention = heads_of_bytes(first, self.block.attn.num_heads, MARGIN * qkv, behind)
        if attention is None:
            return
        ins, outs = attention.inputs, attention.outputs
        before, after = found.smooth("attn.qkv"), found.smooth("attn.proj")
        assert before is not None
        assert after is not None
        rounded = attention(ops.to_bytes(norm / before, ins.scale, ins.zero, ins.levels))
        error = rounded.float().sub_(outs.zero).mul_(outs.scale).mul_(after).sub_(heads)
        low, high = (float(value) for value in qkv.aminmax())
        self.layers.append(Layer(f"{self.name}.{ATTENTION}", _decibels(heads, error), low, high))


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

    return _rounded_model(model, windows, goal, Kind(make, PlainLinear, _with_negative))


def fp8_model(model: SegmentationModel, windows: Tensor, goal: float = AGREEMENT) -> tuple[SegmentationModel, Report]:
    """Return the model with its blocks' products in float8 where the answers stay, else in bfloat16, and the report.

    Unmeasured: made for cards of capability 8.9 and newer; a CPU computes the same numbers slowly.
    Shapes: as ``int8_model``.
    """
    return _rounded_model(
        model, windows, goal, Kind(lambda layer, *_: Fp8Linear(layer), HalfLinear, lambda windows: windows)
    )


def _rounded_model(
    model: SegmentationModel, windows: Tensor, goal: float, kind: Kind
) -> tuple[SegmentationModel, Report]:
    seen: dict[str, _Seen] = {}
    layers: list[Layer] = []
    count = len(windows)

    def observe(name: str, module: nn.Module) -> nn.Module | None:
        return _Observer(name, module, kind, seen, layers) if isinstance(module, Block) else None

    exact = _classes(with_modules(model, observe), kind.seen_with(windows))[:count]
    report = Report(layers, count)
    worst = sorted(layers, key=lambda layer: layer.sqnr_db)

    def attempt(wider: int) -> SegmentationModel:
        report.kept_float = [layer.name for layer in worst[:wider]]
        candidate = _assembled(model, kind, seen, set(report.kept_float))
        report.agreement = float((_classes(candidate, windows) == exact).double().mean())
        return candidate

    candidate, fails, works, wider = attempt(0), 0, len(worst), 0
    if report.agreement >= goal:
        return candidate, report
    following = _first_guess(worst, 1 - report.agreement, 1 - goal)
    while works - fails > max(works // _CLOSE, 1):
        wider = min(max(following, fails + 1), works - 1)
        candidate = attempt(wider)
        fails, works = (fails, wider) if report.agreement >= goal else (wider, works)
        following = (fails + works) // 2
    return (candidate if wider == works else attempt(works)), report


def _first_guess(worst: Sequence[Layer], differ: float, may: float) -> int:
    """Return how many of the worst layers carry so much noise that without them only the pixels that may differ do:
    as many pixels lie within an error of a tie as the error is large."""
    noise = [10 ** (-layer.sqnr_db / 10) for layer in worst]
    left = sum(noise) * (max(may, 0.0) / max(differ, 1e-12)) ** 2
    return next(count for count in range(len(noise) + 1) if sum(noise[count:]) <= left)


def _with_negative(windows: Tensor) -> Tensor:
    """Return the windows and the negative of the first: ranges of one picture alone are too narrow for others, which
    may be dark where it is bright."""
    first = windows[:1]
    return torch.cat((windows, 255 - first if windows.dtype is torch.uint8 else -first))


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
