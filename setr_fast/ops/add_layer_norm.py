"""The sum of a residual stream and a branch, and its layer norm, in one pass.

Statistics are of float32 at least, whatever the branch has: x is the stream, which a model may keep in float32 beside
branches of 16 bits. For inference: it has no gradient (in training a block with it is no faster).

Source: Ba, Kiros, Hinton 2016, arXiv 1607.06450.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._op import FULL, Backend, Bench, Case, Cost, Draw, declare_op, native, python

F32 = (torch.float32, torch.bfloat16)
MAX_KERNEL_WIDTH = 8192
"""Values of a row that a program on a GPU keeps in registers."""


def add_layer_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + branch, and the layer norm of that over the last dimension.

    Shapes: x and branch [..., D], weight and bias [D] -> [..., D] twice: the sum in the wider dtype of x and branch,
    the norm in the dtype of the branch.
    Raises: ShapeError for other shapes.
    """
    if x.shape != branch.shape or x.ndim < 1:
        raise ShapeError(
            f"add_layer_norm: branch must be {list(x.shape)} as x is, at least [D], got {list(branch.shape)}"
        )
    for what, other in (("weight", weight), ("bias", bias)):
        if list(other.shape) != [x.shape[-1]]:
            raise ShapeError(f"add_layer_norm: {what} must be [{x.shape[-1]}], got {list(other.shape)}")
    total, normed = _op(x, branch, weight, bias, eps)
    return total, normed


def _reference(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    wide = torch.promote_types(torch.promote_types(x.dtype, branch.dtype), torch.float32)
    exact = x.to(wide) + branch.to(wide)
    total = exact.to(torch.promote_types(x.dtype, branch.dtype))
    centred = exact - exact.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    normed = centred * rstd * weight.to(wide) + bias.to(wide)
    return total.contiguous(), normed.to(branch.dtype).contiguous()


def library(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Add and normalise by PyTorch's own two kernels."""
    total = (x + branch).contiguous()
    wide = torch.promote_types(total.dtype, torch.float32)
    given = total if total.dtype is wide else total.to(wide)
    normed = torch.nn.functional.layer_norm(given, [x.shape[-1]], weight.to(wide), bias.to(wide), eps)
    return total, normed.to(branch.dtype)


def _fake(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
    return total, branch.new_empty(branch.shape)


_SHAPES: tuple[tuple[str, tuple[int, ...], Bench], ...] = (
    ("odd", (2, 7, 100), False),
    ("one_row", (1, 33), False),
    ("one_value", (3, 1), False),
    ("vit_t_tokens", (2, 65, 192), False),
    ("vit_l_512px", (1, 1024, 1024), True),
    ("vit_l_768px", (1, 2304, 1024), FULL),
)


def _cases() -> Iterator[Case]:
    def make(shape: tuple[int, ...], draw: Draw) -> tuple[Any, ...]:
        return draw(*shape) + 0.5, draw(*shape), draw(shape[-1]), draw(shape[-1]), 1e-6

    for name, shape, bench in _SHAPES:
        yield Case(name, partial(make, shape), bench=bench)


def _cost(x: Tensor, branch: Tensor, weight: Tensor, *_: Any) -> Cost:
    written = x.numel() * torch.promote_types(x.dtype, branch.dtype).itemsize
    return Cost(bytes=x.nbytes + 2 * branch.nbytes + written, flops=8 * x.numel())


def _narrow_only(*args: Any) -> list[str]:
    """The CPU kernel reads a float32 stream and parameters; the branch may have 16 bits."""
    wrong = [str(args[i].dtype)[6:] for i in (0, 2, 3) if args[i].dtype is not torch.float32]
    return [f"takes x, weight and bias of float32, got {', '.join(wrong)}"] if wrong else []


def _triton_refuses(*args: Any) -> list[str]:
    x, reasons = args[0], []
    if x.shape[-1] > MAX_KERNEL_WIDTH:
        reasons.append(f"a row must hold at most {MAX_KERNEL_WIDTH} values, got {x.shape[-1]}")
    if x.is_cuda and torch.cuda.get_device_capability(x.device)[0] < 8:
        reasons.append("the card must be of compute capability 8.0 or newer")
    return reasons


def _on_gpu() -> Backend:
    """Declare the launcher of kernels/add_layer_norm.py, whose statistics are of float32."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    target = "setr_fast.kernels.add_layer_norm:add_layer_norm"
    return python(target, device="cuda", name="triton", dtypes=dtypes, accepts=_triton_refuses, untried=True)


_op = declare_op(
    "add_layer_norm(Tensor x, Tensor branch, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(
        _on_gpu(),
        native("cpu", dtypes=F32, accepts=_narrow_only),
        python("setr_fast.ops.add_layer_norm:library", name="library"),
    ),
    rounds=True,
)
