"""The sum of a residual stream and a branch, and its layer norm, in one pass.

Statistics are of float32 at least, whatever the branch has: x is the stream, which a model may keep in float32 beside
branches of 16 bits.

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
    total, normed, _, _ = _op(x, branch, weight, bias, eps)
    return total, normed


def _reference(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    wide = torch.promote_types(torch.promote_types(x.dtype, branch.dtype), torch.float32)
    exact = x.to(wide) + branch.to(wide)
    total = exact.to(torch.promote_types(x.dtype, branch.dtype))
    mean = exact.mean(-1, keepdim=True)
    centred = exact - mean
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    normed = centred * rstd * weight.to(wide) + bias.to(wide)
    return total.contiguous(), normed.to(branch.dtype).contiguous(), mean.squeeze(-1), rstd.squeeze(-1)


def library(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Add and normalise by PyTorch's own two kernels."""
    total = (x + branch).contiguous()
    wide = torch.promote_types(total.dtype, torch.float32)
    given = total if total.dtype is wide else total.to(wide)
    normed, mean, rstd = torch.ops.aten.native_layer_norm.default(
        given, [x.shape[-1]], weight.to(wide), bias.to(wide), eps
    )
    return total, normed.to(branch.dtype), mean.squeeze(-1), rstd.squeeze(-1)


def _fake(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
    of_row = x.new_empty(x.shape[:-1], dtype=torch.promote_types(total.dtype, torch.float32))
    return total, branch.new_empty(branch.shape), of_row, torch.empty_like(of_row)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, branch, weight, bias, _ = inputs
    total, _, mean, rstd = output
    ctx.save_for_backward(total, weight, mean, rstd)
    ctx.dtypes = x.dtype, branch.dtype, bias.dtype
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_total: Tensor | None, d_normed: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    of_x, of_branch, of_bias = ctx.dtypes
    if d_normed is None:
        if d_total is None:
            return (None,) * 5
        return d_total.to(of_x), d_total.to(of_branch), None, None, None
    total, weight, mean, rstd = ctx.saved_tensors
    op = torch.ops.setr_fast.add_layer_norm_backward.default
    d_total = torch.zeros_like(total) if d_total is None else d_total
    d_sum, d_weight, d_bias = op(d_total, d_normed, total, weight, mean, rstd)
    return d_sum.to(of_x), d_sum.to(of_branch), d_weight, d_bias.to(of_bias), None


def _backward_reference(
    d_total: Tensor, d_normed: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """With y = (s - mean) * rstd and g = d_normed * weight: ds = d_total + rstd * (g - avg(g) - y * avg(g * y))."""
    wide = torch.promote_types(total.dtype, torch.float32)
    y = (total.to(wide) - mean.to(wide).unsqueeze(-1)) * rstd.to(wide).unsqueeze(-1)
    d = d_normed.to(wide)
    g = d * weight.to(wide)
    inner = g - g.mean(-1, keepdim=True) - y * (g * y).mean(-1, keepdim=True)
    d_sum = d_total.to(wide) + rstd.to(wide).unsqueeze(-1) * inner
    rows = tuple(range(total.ndim - 1))
    d_weight = (d * y).sum(rows) if rows else d * y
    d_bias = d.sum(rows) if rows else d
    return d_sum.to(total.dtype).contiguous(), d_weight.to(weight.dtype), d_bias.to(weight.dtype).clone()


def library_backward(
    d_total: Tensor, d_normed: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's own backward of the norm, then the sum."""
    wide = torch.promote_types(total.dtype, torch.float32)
    d_sum, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward.default(
        d_normed.to(wide).contiguous(),
        total.to(wide).contiguous(),
        [total.shape[-1]],
        mean.to(wide).unsqueeze(-1).contiguous(),
        rstd.to(wide).unsqueeze(-1).contiguous(),
        weight.to(wide),
        weight.to(wide),  # the bias: only whether there is one counts
        [True, True, True],
    )
    return (d_sum + d_total).to(total.dtype).contiguous(), d_weight.to(weight.dtype), d_bias.to(weight.dtype)


def _backward_fake(
    d_total: Tensor, d_normed: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


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


def _backward_cases() -> Iterator[Case]:
    def make(shape: tuple[int, ...], draw: Draw) -> tuple[Any, ...]:
        total = draw(*shape) + 0.5
        wide = total.to(torch.promote_types(total.dtype, torch.float32))
        mean = wide.mean(-1)
        rstd = ((wide - mean.unsqueeze(-1)).square().mean(-1) + 1e-6).rsqrt()
        return draw(*shape), draw(*shape), total, draw(shape[-1]), mean, rstd

    for name, shape, bench in _SHAPES:
        if shape[-1] > 1:
            yield Case(name, partial(make, shape), bench=bench)


def _cost(x: Tensor, branch: Tensor, weight: Tensor, *_: Any) -> Cost:
    written = x.numel() * torch.promote_types(x.dtype, branch.dtype).itemsize
    return Cost(bytes=x.nbytes + 2 * branch.nbytes + written, flops=8 * x.numel())


def _backward_cost(d_total: Tensor, d_normed: Tensor, total: Tensor, *_: Any) -> Cost:
    return Cost(bytes=d_total.nbytes + d_normed.nbytes + 2 * total.nbytes, flops=16 * total.numel())


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


def _on_gpu(name: str) -> Backend:
    """Declare a launcher of kernels/add_layer_norm.py, whose statistics are of float32."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    target = f"setr_fast.kernels.add_layer_norm:{name}"
    return python(target, device="cuda", name="triton", dtypes=dtypes, accepts=_triton_refuses, untried=True)


_op = declare_op(
    "add_layer_norm(Tensor x, Tensor branch, Tensor weight, Tensor bias, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=_cases,
    cost=_cost,
    backends=(
        _on_gpu("add_layer_norm"),
        native("cpu", dtypes=F32, accepts=_narrow_only),
        python("setr_fast.ops.add_layer_norm:library", name="library"),
    ),
)
_backward_op = declare_op(
    "add_layer_norm_backward(Tensor d_total, Tensor d_normed, Tensor total, Tensor weight, Tensor mean, Tensor rstd) "
    "-> (Tensor, Tensor, Tensor)",
    reference=_backward_reference,
    fake=_backward_fake,
    cases=_backward_cases,
    cost=_backward_cost,
    backends=(
        _on_gpu("add_layer_norm_backward"),
        python(
            "setr_fast.ops.add_layer_norm:library_backward",
            name="library",
            error_factor=32.0,
            why="PyTorch adds the rows of both parameters' gradients up one after another, the reference in pairs",
        ),
    ),
    rounds=True,
)
