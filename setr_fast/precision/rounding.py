"""A model whose blocks multiply 8-bit numbers, made from calibration windows, with a report on every layer.

One pass in float32 goes block by block: the range of each layer's input is taken, the layer is rounded, and both
answers to the same input are compared. Then the whole model is compared with itself: the layers that are worst go back
to wider numbers, twice as many each time, until the classes agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
from setr_fast.precision.linears import ByteRange, Fp8Linear, HalfLinear, Int8Linear, PlainLinear, byte_levels
from setr_fast.precision.tree import with_modules

AGREEMENT = 0.99
"""Share of pixels that must have the class that float32 gives them."""
SMOOTHING = 0.5
"""How much of a channel's outliers the weight takes over: 0 none, 1 all."""
MARGIN = 1.1
"""Ranges seen in calibration times this: other pictures reach a little further."""


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
    """A way to round: a layer from its float32 layer, the range of its input and what that was divided by; what layers
    that lose too much become; whether outlying channels are shared with the weight first."""

    make: Callable[[nn.Linear, tuple[float, float], Tensor | None], Rounded]
    wider: Callable[[nn.Linear], nn.Module]
    smooths: bool


@dataclass
class _Seen:
    """The calibrated layers of one block; ``smooth`` by the name of the layer behind a norm."""

    layers: dict[str, Rounded]
    smooth: dict[str, Tensor]
    heads: ByteAttention | None = None


class _Observer(nn.Module):
    """Runs a block in float32 and keeps its layers rounded, with their errors."""

    def __init__(self, name: str, block: Block, kind: Kind, seen: dict[str, _Seen], layers: list[Layer]) -> None:
        super().__init__()
        self.name, self.block, self.kind, self.seen, self.layers = name, block, kind, seen, layers

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND, known = steps(self.block, x_BND)
        found = self.seen[self.name] = _Seen({}, {})
        for layer in LAYERS:
            inputs, outputs = known[layer]
            linear = layer_of(self.block, layer)
            if self.kind.smooths and norm_of(self.block, layer) is not None:
                found.smooth[layer] = _smoothing(inputs, linear.weight)
                inputs = inputs / found.smooth[layer]
            low, high = inputs.aminmax()
            reach = MARGIN * float(low), MARGIN * float(high)
            rounded = self.kind.make(linear, reach, found.smooth.get(layer))
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
        rounded = attention(ops.to_bytes(norm / found.smooth["attn.qkv"], ins.scale, ins.zero, ins.levels))
        error = rounded.float().sub_(outs.zero).mul_(outs.scale).sub_(heads)
        low, high = (float(value) for value in qkv.aminmax())
        self.layers.append(Layer(f"{self.name}.{ATTENTION}", _decibels(heads, error), low, high))


def int8_model(model: SegmentationModel, windows: Tensor, goal: float = AGREEMENT) -> tuple[SegmentationModel, Report]:
    """Return the model with its blocks' products in bytes where the answers stay, and the report.

    Shapes: windows as the model takes them, uint8 [b, H, W, 3] or normalised [b, C, H, W].
    Raises: BackendError where this torch cannot multiply bytes.
    """
    levels = byte_levels()

    def make(layer: nn.Linear, reach: tuple[float, float], smooth: Tensor | None) -> Int8Linear:
        return Int8Linear(layer, ByteRange(*reach, levels), smooth)

    return _rounded_model(model, windows, goal, Kind(make, PlainLinear, smooths=True))


def fp8_model(model: SegmentationModel, windows: Tensor, goal: float = AGREEMENT) -> tuple[SegmentationModel, Report]:
    """Return the model with its blocks' products in float8 where the answers stay, else in bfloat16, and the report.

    Unmeasured: made for cards of capability 8.9 and newer; a CPU computes the same numbers slowly.
    Shapes: as ``int8_model``.
    """
    return _rounded_model(model, windows, goal, Kind(lambda layer, *_: Fp8Linear(layer), HalfLinear, smooths=False))


def _rounded_model(
    model: SegmentationModel, windows: Tensor, goal: float, kind: Kind
) -> tuple[SegmentationModel, Report]:
    seen: dict[str, _Seen] = {}
    layers: list[Layer] = []

    def observe(name: str, module: nn.Module) -> nn.Module | None:
        return _Observer(name, module, kind, seen, layers) if isinstance(module, Block) else None

    exact = _classes(with_modules(model, observe), windows)
    report = Report(layers, len(windows))
    order = [layer.name for layer in sorted(layers, key=lambda layer: layer.sqnr_db)]
    for count in _growing(len(order)):
        candidate = _assembled(model, kind, seen, set(order[:count]))
        report.kept_float = order[:count]
        report.agreement = float((_classes(candidate, windows) == exact).double().mean())
        if report.agreement >= goal:
            break
    return candidate, report


def _growing(most: int) -> Iterator[int]:
    """0, 1, 2, 4, ... and at last all."""
    yield 0
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


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
            return Norm(before, found.smooth.get(layer) if rounded[layer] else None)

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


def _smoothing(inputs: Tensor, weight: Tensor) -> Tensor:
    """Return what to divide each input channel by, so that channel and weight share the outliers. Shapes: [K]."""
    reach = inputs.flatten(0, -2).abs().amax(0).clamp_min(1e-5)
    of_weight = weight.detach().abs().amax(0).clamp_min(1e-5)
    smooth = reach**SMOOTHING / of_weight ** (1 - SMOOTHING)
    return smooth / smooth.log().mean().exp()


def _decibels(signal: Tensor, error: Tensor) -> float:
    power, noise = (float(torch.linalg.vector_norm(values)) for values in (signal, error))
    return 20 * math.log10(max(power, 1e-30) / max(noise, 1e-30))
