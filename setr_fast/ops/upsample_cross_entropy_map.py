"""Cross entropy of every pixel between low-resolution logits and full-size labels: one channel, not one per class.

Losses that are functions of this map (hard-example mining, focal loss) need no full-size logits either: their gradient
with respect to the map, one number per pixel, weighs each pixel's share of the logits' gradient.
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
from setr_fast.ops._op import Case, Cost, Draw, declare_op
from setr_fast.ops.upsample_cross_entropy import (
    ON_CPU,
    accumulator,
    accuracy_of,
    by_rows,
    check_loss,
    correct_and_counted,
    draw_labels,
    full_logits,
    on_gpu,
    shapes,
)


class LossMap(NamedTuple):
    """What ``upsample_cross_entropy_map`` gives."""

    losses: Tensor
    """[B, H, W], 0 where the label is ignored."""
    accuracy: Tensor
    """As of ``upsample_cross_entropy``."""


def upsample_cross_entropy_map(
    logits_low: Tensor, labels: Tensor, size: tuple[int, int], align_corners: bool = False, ignore_index: int = 255
) -> LossMap:
    """Resize logits bilinearly to ``size``, crop them to the labels and return the cross entropy of each pixel.

    Shapes: logits [B, K, h, w] in any layout, labels [B, H, W] with H, W at most ``size`` -> losses [B, H, W], 32
    bits or more.
    Raises: ShapeError, also for any other label that is no class.
    """
    check_loss("upsample_cross_entropy_map", logits_low, labels, size)
    try:
        losses, pixels = torch.ops.setr_fast.upsample_cross_entropy_map.default(
            logits_low, labels, *size, align_corners, ignore_index
        )
    except ShapeError:
        raise
    except ValueError as error:  # a compiled kernel's, which knows only ValueError
        raise ShapeError(str(error)) from None
    return LossMap(losses, accuracy_of(pixels))


def _reference(
    logits: Tensor, labels: Tensor, height: int, width: int, align_corners: bool, ignore_index: int
) -> tuple[Tensor, Tensor]:
    truth = legal_labels(labels, logits.shape[1], ignore_index)
    full = full_logits(logits, labels, height, width, align_corners)
    losses = F.cross_entropy(full, truth, ignore_index=ignore_index, reduction="none")
    return losses, correct_and_counted(full, truth, ignore_index)


def _fake(
    logits: Tensor, labels: Tensor, height: int, width: int, align_corners: bool, ignore_index: int
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(labels.shape, dtype=accumulator(logits)), labels.new_empty(2, dtype=torch.int64)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:2])
    ctx.rest = inputs[2:]


def _backward(ctx: Any, grad: Tensor, _pixels: Tensor | None) -> tuple[Any, ...]:
    gradient = torch.ops.setr_fast.upsample_cross_entropy_map_backward.default(grad, *ctx.saved_tensors, *ctx.rest)
    return (gradient, *(None,) * 5)


def _backward_reference(grad: Tensor, logits: Tensor, labels: Tensor, *rest: Any) -> Tensor:
    """Autograd of the reference."""
    with torch.enable_grad():
        pull = torch.func.vjp(lambda x: _reference(x, labels, *rest)[0], logits.detach())[1]
        (gradient,) = pull(grad)
    return torch.empty_like(logits).copy_(gradient)


def _backward_fake(grad: Tensor, logits: Tensor, labels: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits)


def _cases() -> Iterator[Case]:
    def make(shape: Any, size: Any, crop: Any, corners: bool, draw: Draw) -> tuple[Any, ...]:
        return draw(*shape), draw_labels(draw, shape[0], shape[1], crop), *size, corners, 255

    for name, shape, size, crop, corners, bench in shapes():
        if not bench or name.endswith("x4"):
            yield Case(name, partial(make, shape, size, crop, corners), bench=bench)


def _backward_cases() -> Iterator[Case]:
    def make(case: Case, draw: Draw) -> tuple[Any, ...]:
        arguments = case.make(draw)
        grad = draw(*arguments[1].shape).to(accumulator(arguments[0]))
        return grad, *arguments

    for case in _cases():
        yield Case(case.name, partial(make, case), bench=case.bench)


def _cost(logits: Tensor, labels: Tensor, *_: Any) -> Cost:
    return Cost(bytes=logits.nbytes + 5 * labels.numel(), flops=16 * labels.numel() * logits.shape[1])


def _backward_cost(grad: Tensor, logits: Tensor, labels: Tensor, *_: Any) -> Cost:
    flops = 24 * labels.numel() * logits.shape[1]
    return Cost(bytes=2 * logits.nbytes + grad.nbytes + labels.nbytes, flops=flops)


_KERNELS = "upsample_cross_entropy"
_SIZES = "int height, int width, bool align_corners, int ignore_index"

_op = declare_op(
    f"upsample_cross_entropy_map(Tensor logits, Tensor labels, {_SIZES}) -> (Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=_cases,
    cost=_cost,
    backends=(on_gpu(f"{_KERNELS}:upsample_cross_entropy_map", 5), ON_CPU, by_rows("loss_map")),
)
_backward_op = declare_op(
    f"upsample_cross_entropy_map_backward(Tensor grad, Tensor logits, Tensor labels, {_SIZES}) -> Tensor",
    reference=_backward_reference,
    fake=_backward_fake,
    cases=_backward_cases,
    cost=_backward_cost,
    backends=(on_gpu(f"{_KERNELS}:upsample_cross_entropy_map_backward", None), ON_CPU, by_rows("loss_map_backward")),
    rounds=True,
)
