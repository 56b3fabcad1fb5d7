"""Lovasz-softmax loss between low-resolution logits and full-size labels; the full-size logits are never built.

The gradient is worked out in the forward pass and scaled in the backward pass, as of upsample_cross_entropy. Design and
measurements: docs/design/0007-upsample-cross-entropy.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._class_maps import jaccard_steps
from setr_fast.ops._labels import legal_labels
from setr_fast.ops._op import FULL, Case, Cost, Draw, declare_op, native, python
from setr_fast.ops.upsample_cross_entropy import (
    LossAndAccuracy,
    accumulator,
    accuracy_of,
    check_loss,
    correct_and_counted,
    draw_labels,
    full_logits,
    kept_dtype,
    refuses,
    scaled,
    shapes,
)


def upsample_lovasz(
    logits_low: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    align_corners: bool = False,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
) -> LossAndAccuracy:
    """Average the Lovasz extension of the Jaccard loss over the classes that are present in the batch's labels.

    Class weights multiply the classes' terms; the average is over the present classes even so. Nothing is rounded into
    buckets: errors are sorted, equal ones in the order of the pixels.

    Shapes: logits [B, K, h, w] in any layout, labels [B, H, W] with H, W at most ``size``, class_weights [K].
    Raises: ShapeError, also for a label that is no class and not ``ignore_index``.
    Source: Berman et al. 2018, arXiv 1705.08790, equations 9 and 11, algorithm 1.
    """
    check_loss("upsample_lovasz", logits_low, labels, size)
    if class_weights is not None:
        if tuple(class_weights.shape) != (logits_low.shape[1],):
            want, got = f"[{logits_low.shape[1]}]", list(class_weights.shape)
            raise ShapeError(f"upsample_lovasz: class_weights must be {want}, got {got}")
        class_weights = class_weights.detach().to(logits_low.device, accumulator(logits_low))
    needed = torch.is_grad_enabled() and logits_low.requires_grad
    try:
        loss, pixels, _ = torch.ops.setr_fast.upsample_lovasz.default(
            logits_low, labels, class_weights, *size, align_corners, ignore_index, needed
        )
    except ShapeError:
        raise
    except ValueError as error:  # a compiled kernel's, which knows only ValueError
        raise ShapeError(str(error)) from None
    return LossAndAccuracy(loss, accuracy_of(pixels))


def _reference(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    truth = legal_labels(labels, logits.shape[1], ignore_index)
    valid = truth != ignore_index
    present = torch.unique(truth[valid]).tolist()
    class_weights = None if class_weights is None else class_weights.detach()

    def loss_of(low: Tensor) -> Tensor:
        full = full_logits(low, labels, height, width, align_corners)
        p_of = full.softmax(1)
        loss = full.sum() * 0.0
        for index in present:
            here, p = (truth == index)[valid], p_of[:, index][valid]
            errors, order = torch.where(here, 1.0 - p, p).sort(descending=True, stable=True)
            term = (errors * jaccard_steps(here[order]).to(p.dtype)).sum() / len(present)
            loss = loss + (term if class_weights is None else class_weights[index] * term)
        return loss

    full = full_logits(logits.detach(), labels, height, width, align_corners)
    pixels = correct_and_counted(full, truth, ignore_index)
    if not with_gradient:
        return loss_of(logits), pixels, logits.new_empty(0)
    with torch.enable_grad():
        result: Any = torch.func.vjp(loss_of, logits.detach())
        loss, pull = result
        (gradient,) = pull(torch.ones_like(loss))
    if logits.requires_grad:  # called as plain PyTorch, and not through the op
        loss = loss_of(logits)
    return loss, pixels, torch.empty_like(logits, dtype=kept_dtype(logits)).copy_(gradient)


def _fake(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = torch.empty_like(logits, dtype=kept_dtype(logits)) if with_gradient else logits.new_empty(0)
    return logits.new_empty((), dtype=accumulator(logits)), labels.new_empty(2, dtype=torch.int64), gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, pixels, gradient = output
    ctx.with_gradient, ctx.dtype = inputs[-1], inputs[0].dtype
    ctx.save_for_backward(gradient)
    ctx.mark_non_differentiable(pixels, gradient)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _pixels: Tensor | None, _gradient: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    if not ctx.with_gradient:
        raise ShapeError("upsample_lovasz: with_gradient must be true where the logits need one, got false")
    (gradient,) = ctx.saved_tensors
    return (scaled(gradient, grad, ctx.dtype), *(None,) * 7)


def _cases() -> Iterator[Case]:
    def make(shape: Any, size: Any, crop: Any, corners: bool, weighted: bool, draw: Draw) -> tuple[Any, ...]:
        weights = draw(shape[1]).abs().to(torch.promote_types(draw.dtype, torch.float32)) if weighted else None
        return draw(*shape), draw_labels(draw, shape[0], shape[1], crop), weights, *size, corners, 255, True

    timed = ("cityscapes_19_x4_small", (1, 19, 32, 32), (128, 128), (128, 128), False, True)
    # A single low pixel gives equal errors everywhere, and with them as many subgradients as there are orders.
    small = [some for some in shapes() if not some[-1] and some[0] != "one_low_pixel"]
    for number, (name, shape, size, crop, corners, bench) in enumerate((timed, *small)):
        yield Case(name, partial(make, shape, size, crop, corners, number % 2 == 1), bench=bench)
    for name, shape, size, crop, corners, _ in shapes():
        if name in ("ade20k_150_x4", "cityscapes_19_x4"):
            yield Case(name, partial(make, shape, size, crop, corners, False), bench=FULL)


def _cost(logits: Tensor, labels: Tensor, *_: Any) -> Cost:
    """Return logits read and gradients written; per pixel and class two exponentials and their sums."""
    return Cost(bytes=2 * logits.nbytes + labels.nbytes, flops=48 * labels.numel() * logits.shape[1])


_op = declare_op(
    "upsample_lovasz(Tensor logits, Tensor labels, Tensor? class_weights, int height, int width, "
    "bool align_corners, int ignore_index, bool with_gradient) -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=_cases,
    cost=_cost,
    backends=(
        native("cpu", dtypes=(torch.float32, torch.bfloat16), accepts=refuses),
        python("setr_fast.ops._class_maps:lovasz", name="by_class"),
    ),
)
