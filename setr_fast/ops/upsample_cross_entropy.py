"""Cross entropy between low-resolution logits and full-size labels; the full-size logits are never built.

The loss is a scalar, so its gradient with respect to the logits is worked out in the forward pass, from the same
exponentials, and the backward pass only scales it. Sums run in one fixed order: two runs give the same bits.
Design and measurements: docs/design/0007-upsample-cross-entropy.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._labels import legal_labels, looks_first
from setr_fast.ops._op import FULL, Backend, Bench, Case, Cost, Draw, declare_op, native, python

AVERAGINGS = ("all", "valid", "count")
LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
LOGIT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_KERNEL_CLASSES = {"cpu": 4096, "cuda": 512}


class LossAndAccuracy(NamedTuple):
    """What ``upsample_cross_entropy`` gives."""

    loss: Tensor
    """Scalar of 32 bits or more."""
    accuracy: Tensor
    """Share of the pixels that are not ignored whose largest logit is their label's (the first largest one counts)."""


def upsample_cross_entropy(
    logits_low: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    align_corners: bool = False,
    ignore_index: int = 255,
    averaging: str = "valid",
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> LossAndAccuracy:
    """Resize logits bilinearly to ``size``, crop them to the labels' size and average their cross entropy.

    ``averaging`` says what the sum over all pixels that are not ignored is divided by. ``valid``: the sum of their
    labels' class weights, which without weights is their number (torch, PaddleSeg, Segmenter). ``all``: the number of
    pixels, ignored ones too (SETR, mmsegmentation). ``count``: the number of pixels that are not ignored, whatever
    their weights (mmsegmentation's avg_non_ignore). A divisor of zero gives a loss of 0 and gradients of 0.
    Weights and smoothing act as in torch.nn.functional.cross_entropy.

    Shapes: logits [B, K, h, w] in any layout, labels [B, H, W] with H, W at most ``size`` (rows at the bottom and
    columns on the right are cut off), class_weights [K].
    Units: labels 0..K-1 or ``ignore_index``; label_smoothing in [0, 1].
    Raises: ShapeError, also for any other label.
    """
    check_loss("upsample_cross_entropy", logits_low, labels, size)
    if averaging not in AVERAGINGS:
        raise ShapeError(f"upsample_cross_entropy: averaging must be {', '.join(AVERAGINGS)}, got {averaging!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ShapeError(f"upsample_cross_entropy: label_smoothing must lie in 0..1, got {label_smoothing}")
    if class_weights is not None:
        if tuple(class_weights.shape) != (logits_low.shape[1],):
            want, got = f"[{logits_low.shape[1]}]", list(class_weights.shape)
            raise ShapeError(f"upsample_cross_entropy: class_weights must be {want}, got {got}")
        class_weights = class_weights.detach().to(logits_low.device, accumulator(logits_low))
    needed = torch.is_grad_enabled() and logits_low.requires_grad
    try:
        loss, pixels, _ = torch.ops.setr_fast.upsample_cross_entropy.default(
            logits_low, labels, class_weights, *size, align_corners, ignore_index, averaging, label_smoothing, needed
        )
    except ShapeError:
        raise
    except ValueError as error:  # a compiled kernel's, which knows only ValueError
        raise ShapeError(str(error)) from None
    return LossAndAccuracy(loss, accuracy_of(pixels))


def accumulator(logits: Tensor) -> torch.dtype:
    """Return what sums are held in: float32, or float64 of float64 logits."""
    return torch.promote_types(logits.dtype, torch.float32)


def check_loss(where: str, logits: Tensor, labels: Tensor, size: tuple[int, int]) -> None:
    """Refuse logits and labels that do not belong together.

    Raises: ShapeError.
    """
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
        got = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ShapeError(f"{where}: logits and labels must be [B, K, h, w] and [B, H, W], got {got}")
    if 0 in logits.shape[1:]:
        raise ShapeError(f"{where}: logits must hold a class and a pixel, got {list(logits.shape)}")
    if logits.dtype not in LOGIT_DTYPES:
        raise ShapeError(f"{where}: logits must be floating-point, got {str(logits.dtype)[6:]}")
    if labels.dtype not in LABEL_DTYPES:
        names = ", ".join(str(d)[6:] for d in LABEL_DTYPES)
        raise ShapeError(f"{where}: labels must be integers ({names}), got {str(labels.dtype)[6:]}")
    if labels.device != logits.device:
        raise ShapeError(f"{where}: labels must be on the logits' device {logits.device}, got {labels.device}")
    if labels.shape[-2] > size[0] or labels.shape[-1] > size[1]:
        raise ShapeError(
            f"{where}: labels must be at most {tuple(size)} pixels, got {tuple(labels.shape[-2:])}; resize the logits "
            "to the labels' size or more"
        )


def full_logits(logits: Tensor, labels: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Return the full-size logits [B, K, H, W] of the labels' size, as the references build them."""
    logits = logits.to(accumulator(logits))
    if tuple(logits.shape[-2:]) != (height, width):
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=align_corners)
    return logits[..., : labels.shape[-2], : labels.shape[-1]]


def correct_and_counted(full: Tensor, truth: Tensor, ignore_index: int) -> Tensor:
    """Return the number of pixels whose first largest logit is their label's, and of those that are not ignored."""
    counts = truth != ignore_index
    return torch.stack((((full.detach().argmax(1) == truth) & counts).sum(), counts.sum()))


def accuracy_of(pixels: Tensor) -> Tensor:
    """Return the share of the counted pixels that are right, 0 of none."""
    return pixels[0].float() / pixels[1].clamp_min(1)


def _reference(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    averaging: str,
    label_smoothing: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    truth = legal_labels(labels, logits.shape[1], ignore_index)
    counts = truth != ignore_index
    class_weights = None if class_weights is None else class_weights.detach()
    divisor: Tensor | int = max(truth.numel(), 1) if averaging == "all" else counts.sum()
    if averaging == "valid" and class_weights is not None:
        divisor = (class_weights[truth.where(counts, 0)] * counts).sum()

    def loss_of(low: Tensor) -> tuple[Tensor, Tensor]:
        full = full_logits(low, labels, height, width, align_corners)
        kept: dict[str, Any] = {
            "weight": class_weights,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
        }
        total = F.cross_entropy(full, truth, reduction="sum", **kept)
        mean = total / divisor if isinstance(divisor, int) else total / divisor.where(divisor > 0, 1)
        return mean, correct_and_counted(full, truth, ignore_index)

    if not with_gradient:
        return *loss_of(logits), logits.new_empty(0)
    with torch.enable_grad():
        result: Any = torch.func.vjp(loss_of, logits.detach(), has_aux=True)
        loss, pull, pixels = result
        (gradient,) = pull(torch.ones_like(loss))
    if logits.requires_grad:  # called as plain PyTorch, and not through the op
        loss = loss_of(logits)[0]
    return loss, pixels, torch.empty_like(logits, dtype=kept_dtype(logits)).copy_(gradient)


def _fake(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    averaging: str,
    label_smoothing: float,
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
        return (None,) * 10
    if not ctx.with_gradient:
        raise ShapeError("upsample_cross_entropy: with_gradient must be true where the logits need one, got false")
    (gradient,) = ctx.saved_tensors
    return (scaled(gradient, grad, ctx.dtype), *(None,) * 9)


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient that the forward pass made times a scalar."""
    if gradient.is_cuda and gradient.dtype is torch.bfloat16:  # it would round the scalar to 16 bits first
        gradient = gradient.float()
    return (gradient * factor).to(dtype)


def kept_dtype(logits: Tensor) -> torch.dtype:
    """Return what a gradient waits in for its factor: float16 would lose what a loss scale is there to save."""
    return torch.float32 if logits.dtype is torch.float16 else logits.dtype


def refuses(*args: Any) -> list[str]:
    """Return why the kernels do not take these arguments."""
    logits, reasons = next(a for a in args if isinstance(a, Tensor) and a.ndim == 4), []
    most = MAX_KERNEL_CLASSES.get(logits.device.type, 0)
    if logits.shape[1] > most:
        reasons.append(f"there must be at most {most} classes, got {logits.shape[1]}")
    if logits.is_cuda and torch.cuda.get_device_capability(logits.device)[0] < 8:
        reasons.append("the card must be of compute capability 8.0 or newer")
    return reasons


def shapes() -> Iterator[tuple[str, tuple[int, int, int, int], tuple[int, int], tuple[int, int], bool, Bench]]:
    """Yield name, logits [B, K, h, w], size, labels [H, W], align_corners, whether it is timed."""
    full, larger = (512, 512), (768, 768)
    yield "ade20k_150_x4", (1, 150, 128, 128), full, full, False, True
    yield "ade20k_150_x16", (1, 150, 32, 32), full, full, False, True
    yield "ade20k_150_x2", (1, 150, 256, 256), full, full, False, True
    yield "cityscapes_19_x4", (1, 19, 192, 192), larger, larger, False, FULL
    yield "cityscapes_19_x16", (1, 19, 48, 48), larger, larger, False, FULL
    yield "cityscapes_19_x2", (1, 19, 384, 384), larger, larger, False, FULL
    yield "one_low_pixel", (2, 3, 1, 1), (7, 5), (7, 5), False, False
    yield "odd_cropped", (2, 19, 5, 7), (33, 50), (31, 47), False, False
    yield "corners", (1, 17, 4, 9), (29, 41), (29, 41), True, False
    yield "smaller", (1, 5, 23, 18), (9, 11), (9, 11), False, False
    yield "same_size", (2, 16, 6, 5), (6, 5), (6, 5), False, False
    yield "two_classes", (1, 2, 3, 40), (40, 41), (40, 41), True, False


def draw_labels(draw: Draw, batch: int, classes: int, size: tuple[int, int]) -> Tensor:
    """Return uint8 labels of which every seventh is ignored."""
    labels = draw.integers(0, classes, (batch, *size), torch.uint8)
    labels.view(-1)[::7] = 255
    return labels


def _cases() -> Iterator[Case]:
    def make(shape: Any, size: Any, crop: Any, corners: bool, options: tuple[Any, ...], draw: Draw) -> tuple[Any, ...]:
        averaging, smoothing, weighted = options
        weights = draw(shape[1]).abs().to(torch.promote_types(draw.dtype, torch.float32)) if weighted else None
        labels = draw_labels(draw, shape[0], shape[1], crop)
        return draw(*shape), labels, weights, *size, corners, 255, averaging, smoothing, True

    for number, (name, shape, size, crop, corners, bench) in enumerate(shapes()):
        options = ("valid", 0.0, False) if bench else (AVERAGINGS[number % 3], 0.1 * (number % 2), number % 2 == 0)
        yield Case(name, partial(make, shape, size, crop, corners, options), bench=bench)


def _cost(logits: Tensor, labels: Tensor, *_: Any) -> Cost:
    """Return logits read and gradients written; per pixel and class a mix, an exponential and two sums."""
    return Cost(bytes=2 * logits.nbytes + labels.nbytes, flops=24 * labels.numel() * logits.shape[1])


def on_gpu(target: str, ignore_index_at: int | None, accepts: Callable[..., list[str]] = refuses) -> Backend:
    """Declare a launcher ``file:function`` of kernels/, and which of its arguments says what label is ignored.

    None: its labels were looked at before, in the forward pass.
    """
    return python(
        f"setr_fast.kernels.{target}",
        device="cuda",
        name="triton",
        adapt=None if ignore_index_at is None else looks_first(ignore_index_at),
        dtypes=(torch.float16, torch.bfloat16, torch.float32),
        accepts=accepts,
        untried=True,
    )


def by_rows(name: str) -> Backend:
    """Declare what serves where no kernel does: PyTorch's ops on a band of rows after the other, any device."""
    return python(f"setr_fast.ops._bands:{name}", name="by_rows")


ON_CPU = native("cpu", dtypes=(torch.float32, torch.bfloat16), accepts=refuses)

_op = declare_op(
    "upsample_cross_entropy(Tensor logits, Tensor labels, Tensor? class_weights, int height, int width, "
    "bool align_corners, int ignore_index, str averaging, float label_smoothing, bool with_gradient) "
    "-> (Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=_cases,
    cost=_cost,
    backends=(on_gpu("upsample_cross_entropy:upsample_cross_entropy", 6), ON_CPU, by_rows("cross_entropy")),
)
