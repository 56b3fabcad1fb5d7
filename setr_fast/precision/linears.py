"""Linear layers of inference: what surrounds a product (GELU, the residual sum, rounding to bytes) runs in it.

Each is called as ``layer(x, gelu=False, onto=None)``: with ``onto`` it adds its result to that tensor, which may be
overwritten, and returns the sum.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast import ops
from setr_fast.errors import BackendError


class ByteRange:
    """The affine map between numbers and bytes: number = scale * (byte - zero)."""

    def __init__(self, low: float, high: float, levels: int) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        self.levels = levels
        self.scale = max((high - low) / levels, 1e-12)
        self.zero = round(-low / self.scale)


class Product(Protocol):
    """A linear layer of inference."""

    def __call__(self, x: Tensor, *, gelu: bool = False, onto: Tensor | None = None) -> Tensor: ...


class PlainLinear(nn.Module):
    """The layer as it is, with PyTorch's own product."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor, *, gelu: bool = False, onto: Tensor | None = None) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if gelu:
            y = torch.ops.aten.gelu_.default(y)
        return y if onto is None else onto.add_(y)


class HalfLinear(nn.Module):
    """bfloat16 weights, converted once; on a CPU also laid out once as oneDNN reads them."""

    def __init__(self, layer: nn.Linear, exact_gelu: bool = True) -> None:
        super().__init__()
        weight = layer.weight.detach().to(torch.bfloat16)
        self.packed = weight.device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight
        self.bias = None if layer.bias is None else layer.bias.detach().to(torch.bfloat16)
        self.exact_gelu = exact_gelu

    def forward(self, x: Tensor, *, gelu: bool = False, onto: Tensor | None = None) -> Tensor:
        x = x.to(torch.bfloat16)
        if self.packed:
            after = "gelu" if gelu else "none"
            y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, after, [], "none" if gelu else "")
        elif gelu and not self.exact_gelu and x.is_cuda and self.bias is not None:
            # cuBLASLt's epilogue knows the tanh form only.
            y = torch._addmm_activation(self.bias, x.flatten(0, -2), self.weight.t(), use_gelu=True)
            y = y.view(*x.shape[:-1], -1)
        else:
            y = F.linear(x, self.weight, self.bias)
            y = torch.ops.aten.gelu_.default(y) if gelu else y
        return y if onto is None else onto.add_(y)


def smoothing(inputs: Tensor, weight: Tensor) -> Tensor:
    """Return what to divide each input channel of a product by, so that channel and weight share the outliers.

    Shapes: inputs [..., K], weight [M, K] -> [K].
    Source: Xiao et al. 2022, arXiv 2211.10438.
    """
    reach = inputs.flatten(0, -2).abs().amax(0).clamp_min(1e-5)
    of_weight = weight.detach().abs().amax(0).clamp_min(1e-5)
    smooth = (reach / of_weight).sqrt_()
    return smooth / smooth.log().mean().exp()


class Int8Linear(nn.Module):
    """Bytes times signed bytes in oneDNN, summed in 32 bits; activations by one range, weights by one per output.

    ``smooth`` [K]: bytes that come in are of the input divided by this, the weight is multiplied by it. Numbers that
    come in are as the layer itself takes them.
    """

    def __init__(self, layer: nn.Linear, inputs: ByteRange, smooth: Tensor | None = None) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        weight = weight if smooth is None else weight * smooth
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp_min(1e-12)
        whole = (weight / scale[:, None]).round_()
        self.inputs, self.smooth = inputs, smooth
        self.outputs: ByteRange | None = None  # set: what follows takes bytes of this range
        self.weight = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), None)
        self.scale = scale
        self.zeros = torch.zeros(len(scale), dtype=torch.int64)
        self.bias = bias

    def forward(self, x: Tensor, *, gelu: bool = False, onto: Tensor | None = None) -> Tensor:
        if x.dtype is not torch.uint8:
            x = x if self.smooth is None else x / self.smooth
            x = ops.to_bytes(x, self.inputs.scale, self.inputs.zero, self.inputs.levels)
        known = (x, self.inputs.scale, self.inputs.zero, self.weight, self.scale, self.zeros)
        if onto is not None:
            return torch.ops.onednn.qlinear_pointwise.binary(
                *known, onto, self.bias, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], ""
            )
        after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        if self.outputs is None:
            return torch.ops.onednn.qlinear_pointwise(*known, self.bias, 1.0, 0, torch.float32, *after)
        to = self.outputs
        return torch.ops.onednn.qlinear_pointwise(*known, self.bias, to.scale, to.zero, torch.uint8, *after)


class Fp8Linear(nn.Module):
    """float8 (e4m3) times float8, summed in float32: a scale per token and one per output, as they come.

    Unmeasured: never run on a GPU. Elsewhere PyTorch computes the same numbers slowly.
    """

    outputs: None = None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.scale = _to_fp8(layer.weight.detach().float())
        self.bias = None if layer.bias is None else layer.bias.detach().to(torch.bfloat16)

    def forward(self, x: Tensor, *, gelu: bool = False, onto: Tensor | None = None) -> Tensor:
        rows, scale = _to_fp8(x.flatten(0, -2))
        y = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale,
            self.scale.t(),
            self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,  # the card's own sums: what they cost is in the report of the calibration
        )
        y = torch.ops.aten.gelu_.default(y) if gelu else y
        y = y.view(*x.shape[:-1], -1)
        return y if onto is None else onto.add_(y)


def _to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows with their largest value at the format's largest, and the scale of each.

    Three passes over the rows; a quotient that rounding puts above the largest value is rounded back to it.
    Shapes: [M, K], float32 or 16 bits -> [M, K], [M, 1] of float32.
    """
    most = torch.finfo(torch.float8_e4m3fn).max
    largest = torch.linalg.vector_norm(rows, torch.inf, 1, keepdim=True, dtype=torch.float32)
    scale = (largest / most).clamp_min_(1e-12)
    return (rows / scale).to(torch.float8_e4m3fn), scale


@functools.cache
def byte_levels() -> int:
    """Return how many steps a byte of activations has: without VNNI, pairs of products are summed in 16 bits.

    255 * 127 twice would not fit there; 127 * 127 twice does.
    Raises: BackendError where this torch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        raise BackendError("precision: int8 must have a torch with oneDNN, got none; use fp32 or bf16")
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return 255 if found.get("avx512_vnni") or found.get("avx_vnni") else 127
