"""Sums over pixels of every class's probability, from low-resolution logits: what the Dice loss is made of.

The gradient takes a second pass over the exponentials, as it needs the sums. Design and measurements:
docs/design/0007-upsample-cross-entropy.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._labels import legal_labels
from setr_fast.ops._op import FULL, Case, Cost, Draw, declare_op, native, python
from setr_fast.ops.upsample_cross_entropy import (
    accumulator,
    accuracy_of,
    check_loss,
    correct_and_counted,
    draw_labels,
    full_logits,
    on_gpu,
    refuses,
    shapes,
)


class ClassSums(NamedTuple):
    """What ``upsample_class_sums`` gives."""

    here: Tensor
    """[K]: of the class's probability, over the pixels whose label it is."""
    everywhere: Tensor
    """[K]: of the class's probability to the power of ``exponent``, over all pixels that are not ignored."""
    accuracy: Tensor
    """As of ``upsample_cross_entropy``."""


def upsample_class_sums(
    logits_low: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    align_corners: bool = False,
    ignore_index: int = 255,
    exponent: int = 1,
) -> ClassSums:
    """Resize logits bilinearly to ``size``, crop them to the labels and add up the softmax over pixels, by class.

    Shapes: logits [B, K, h, w] in any layout, labels [B, H, W] with H, W at most ``size``.
    Raises: ShapeError, also for a label that is no class and not ``ignore_index``.
    """
    check_loss("upsample_class_sums", logits_low, labels, size)
    if exponent < 1:
        raise ShapeError(f"upsample_class_sums: exponent must be at least 1, got {exponent}")
    try:
        sums, pixels = torch.ops.setr_fast.upsample_class_sums.default(
            logits_low, labels, *size, align_corners, ignore_index, exponent
        )
    except ShapeError:
        raise
    except ValueError as error:  # a compiled kernel's, which knows only ValueError
        raise ShapeError(str(error)) from None
    return ClassSums(sums[0], sums[1], accuracy_of(pixels))


def _reference(
    logits: Tensor,
    labels: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    exponent: int,
) -> tuple[Tensor, Tensor]:
    truth = legal_labels(labels, logits.shape[1], ignore_index)
    full = full_logits(logits, labels, height, width, align_corners)
    valid = truth != ignore_index
    p = full.softmax(1) * valid[:, None]
    here = F.one_hot(truth.where(valid, 0), logits.shape[1]).permute(0, 3, 1, 2)
    sums = torch.stack(((p * here).sum((0, 2, 3)), (p**exponent).sum((0, 2, 3))))
    return sums, correct_and_counted(full, truth, ignore_index)


def _fake(logits: Tensor, labels: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    sums = logits.new_empty((2, logits.shape[1]), dtype=accumulator(logits))
    return sums, labels.new_empty(2, dtype=torch.int64)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:2])
    ctx.rest = inputs[2:]


def _backward(ctx: Any, grad: Tensor, _pixels: Tensor | None) -> tuple[Any, ...]:
    gradient = torch.ops.setr_fast.upsample_class_sums_backward.default(grad, *ctx.saved_tensors, *ctx.rest)
    return (gradient, *(None,) * 6)


def _backward_reference(grad: Tensor, logits: Tensor, labels: Tensor, *rest: Any) -> Tensor:
    """Autograd of the reference."""
    with torch.enable_grad():
        pull = torch.func.vjp(lambda x: _reference(x, labels, *rest)[0], logits.detach())[1]
        (gradient,) = pull(grad)
    return torch.empty_like(logits).copy_(gradient)


def _backward_fake(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _cases() -> Iterator[Case]:
    def make(shape: Any, size: Any, crop: Any, corners: bool, exponent: int, draw: Draw) -> tuple[Any, ...]:
        return draw(*shape), draw_labels(draw, shape[0], shape[1], crop), *size, corners, 255, exponent

    timed = ("ade20k_150_x4_small", (1, 150, 32, 32), (128, 128), (128, 128), False, True)
    full = (some for some in shapes() if some[0] in ("ade20k_150_x4", "cityscapes_19_x4"))
    for number, case in enumerate((timed, *(some for some in shapes() if not some[-1]), *full)):
        name, shape, size, crop, corners, bench = case
        bench = FULL if bench and case is not timed else bench
        yield Case(name, partial(make, shape, size, crop, corners, 1 + number % 2), bench=bench)


def _backward_cases() -> Iterator[Case]:
    def make(case: Case, draw: Draw) -> tuple[Any, ...]:
        arguments = case.make(draw)
        return draw(2, arguments[0].shape[1]).to(accumulator(arguments[0])), *arguments

    for case in _cases():
        yield Case(case.name, partial(make, case), bench=case.bench)


def _cost(logits: Tensor, labels: Tensor, *_: Any) -> Cost:
    return Cost(bytes=logits.nbytes + labels.nbytes, flops=18 * labels.numel() * logits.shape[1])


def _backward_cost(grad: Tensor, logits: Tensor, labels: Tensor, *_: Any) -> Cost:
    return Cost(bytes=2 * logits.nbytes + labels.nbytes, flops=28 * labels.numel() * logits.shape[1])


def _kernel_refuses(*args: Any) -> list[str]:
    return refuses(*args) + ([] if args[-1] in (1, 2) else [f"takes exponents 1 and 2, got {args[-1]}"])


_ON_CPU = native("cpu", dtypes=(torch.float32, torch.bfloat16), accepts=_kernel_refuses)
_KERNELS = "upsample_class_sums"
_BANDS = "setr_fast.ops._bands"
_SIZES = "int height, int width, bool align_corners, int ignore_index, int exponent"

_op = declare_op(
    f"upsample_class_sums(Tensor logits, Tensor labels, {_SIZES}) -> (Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=_cases,
    cost=_cost,
    backends=(
        on_gpu(f"{_KERNELS}:upsample_class_sums", 5, _kernel_refuses),
        _ON_CPU,
        python(f"{_BANDS}:class_sums", name="by_rows"),
    ),
)
_backward_op = declare_op(
    f"upsample_class_sums_backward(Tensor grad, Tensor logits, Tensor labels, {_SIZES}) -> Tensor",
    reference=_backward_reference,
    fake=_backward_fake,
    cases=_backward_cases,
    cost=_backward_cost,
    backends=(
        on_gpu(f"{_KERNELS}:upsample_class_sums_backward", None, _kernel_refuses),
        _ON_CPU,
        python(f"{_BANDS}:class_sums_backward", name="by_rows"),
    ),
    rounds=True,
)
