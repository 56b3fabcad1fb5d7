"""A model made ready for one precision: once per model and precision, again when its weights change."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from setr_fast.errors import ConfigError
from setr_fast.models.model import SegmentationModel
from setr_fast.nn.block import Block
from setr_fast.nn.conv import ConvStage, FoldedStage
from setr_fast.precision.block import LAYERS, InferenceBlock, Norm, layer_of
from setr_fast.precision.choose import fastest
from setr_fast.precision.linears import HalfLinear
from setr_fast.precision.rounding import fp8_model, int8_model
from setr_fast.precision.tree import fingerprint, with_modules

_FIRST_USE = 8 * 2**20
"""What oneDNN makes for products of narrow numbers when they are first asked for."""


@dataclass
class Prepared:
    """A model in one precision, and what is to be told about it."""

    model: nn.Module
    precision: str
    autocast: bool = False
    """Its head runs under autocast to bfloat16."""
    report: dict[str, Any] = field(default_factory=dict)
    replay: Callable[[Tensor], Tensor] | None = None
    """What the engine recorded of this model on a GPU; gone with it when the weights change."""


_KEPT: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, bool], tuple[Any, Prepared]]] = weakref.WeakKeyDictionary()


def prepared(model: nn.Module, precision: str, windows: Tensor, exact_gelu: bool = True) -> Prepared:
    """Return the model in the precision that is asked for; ``windows`` calibrate int8 and are timed for auto.

    Kept until the weights change. A model of another class than ours, or one whose weights are sharded over processes,
    runs as it is, under autocast for bf16.
    Raises: ConfigError for int8 on a GPU, fp8 on a CPU, or either of another class of model.
    """
    sharded = any(hasattr(parameter, "placements") for parameter in model.parameters())
    if sharded or not isinstance(model, SegmentationModel):
        if precision in ("int8", "fp8"):
            got = "one sharded over processes" if sharded else type(model).__name__
            raise ConfigError(f"precision: {precision} must have a model of this package, got {got}; use fp32 or bf16")
        return Prepared(model, "bf16" if precision == "bf16" else "fp32", precision == "bf16")
    now = fingerprint(model)
    of_model = _KEPT.setdefault(model, {})
    known = of_model.get((precision, exact_gelu))
    if known is None or known[0] != now:
        of_model[precision, exact_gelu] = known = now, _prepare(model, precision, windows, exact_gelu)
    return known[1]


def used(model: nn.Module, precision: str, exact_gelu: bool = True) -> dict[str, Any]:
    """Return what a precision became of this model so far: the one chosen, and the report of its calibration."""
    known = _KEPT.get(model, {}).get((precision, exact_gelu))
    asked = {"asked": precision}
    return asked if known is None else asked | {"used": known[1].precision} | known[1].report


@torch.no_grad()
def _prepare(model: SegmentationModel, precision: str, windows: Tensor, exact_gelu: bool) -> Prepared:
    report: dict[str, Any] = {}
    if precision == "auto":
        precision, report["seconds_per_block"] = fastest(model, windows)
    if precision == "int8":
        if windows.device.type != "cpu":
            raise ConfigError(f"precision: int8 must run on a CPU, got {windows.device}; use bf16 there")
        found, calibration = int8_model(model, windows)
        return Prepared(with_modules(found, folded_stage), precision, report={"calibration": calibration.to_dict()})
    if precision == "fp8":
        if not windows.is_cuda or torch.cuda.get_device_capability(windows.device) < (8, 9):
            raise ConfigError(
                f"precision: fp8 must run on a card of capability 8.9 or newer, got {windows.device}; use bf16"
            )
        if width := _odd_width(model):
            raise ConfigError(f"precision: fp8 must have widths of a multiple of 16, got {width}; use bf16")
        found, calibration = fp8_model(model, windows)
        return Prepared(half_model(found), precision, True, {"calibration": calibration.to_dict()})
    if precision == "bf16":
        return Prepared(half_model(model, exact_gelu), precision, True, report)
    return Prepared(with_modules(model, _plain), precision, report=report)


def kept_bytes(model: nn.Module, precision: str) -> int:
    """Return what stays of weights that are made ready for a precision, beside the model's own, and the largest of them
    once more while it is made, in bytes."""
    if not isinstance(model, SegmentationModel):
        return 0
    stages = [module.conv.weight.numel() for module in model.modules() if isinstance(module, ConvStage)]
    if precision in ("bf16", "auto"):
        kinds = (nn.Linear, nn.Conv2d)
        layers = [module.weight.numel() for module in model.modules() if isinstance(module, kinds)]
        return _FIRST_USE + 2 * sum(layers) + 6 * max(layers)
    blocks = (block for block in model.modules() if isinstance(block, Block)) if precision == "int8" else ()
    layers = [part.weight.numel() for block in blocks for part in block.modules() if isinstance(part, nn.Linear)]
    first = _FIRST_USE if precision == "int8" else 0
    return first + 4 * sum(stages) + sum(layers) + 12 * max(layers, default=0)


def _odd_width(model: SegmentationModel) -> int | None:
    """Return a width of a block's layers that a card cannot multiply in float8, or None."""
    layers = (layer_of(block, name) for block in model.encoder.blocks if isinstance(block, Block) for name in LAYERS)
    return next((width for layer in layers for width in layer.weight.shape if width % 16), None)


def half_model(model: SegmentationModel, exact_gelu: bool = True) -> SegmentationModel:
    """Return the model with bfloat16 weights, converted once. Norms and the residual stream stay float32."""

    def exchange(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, Block):
            return half_block(module, exact_gelu)
        folded = folded_stage(name, module)
        return folded.to(torch.bfloat16) if folded is not None else _half_copy(module)

    return with_modules(model, exchange)


def half_block(block: Block, exact_gelu: bool = True) -> InferenceBlock:
    """Return a block whose products are of bfloat16."""
    products = tuple(HalfLinear(layer_of(block, name), exact_gelu) for name in LAYERS)
    return InferenceBlock(block.attn.num_heads, (Norm(block.norm1), Norm(block.norm2)), products)


def folded_stage(name: str, module: nn.Module) -> nn.Module | None:
    """Return a stage of a head with its batch norm worked into the convolution, where it has its running statistics."""
    return FoldedStage(module) if isinstance(module, ConvStage) else None


def _plain(name: str, module: nn.Module) -> nn.Module | None:
    return InferenceBlock.plain(module) if isinstance(module, Block) else folded_stage(name, module)


def _half_copy(module: nn.Module) -> nn.Module | None:
    """Return a linear layer or convolution with bfloat16 weights."""
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        return None
    half = with_modules(module, lambda *_: None)
    half._parameters = {
        key: None if value is None else nn.Parameter(value.detach().to(torch.bfloat16), requires_grad=False)
        for key, value in module._parameters.items()
    }
    return half
