"""Labels that are no class: found on the labels' own device, and reported without stopping it in a training step.

An op that judges labels looks at them before anything else, and to raise an error for one of them it must wait for the
device. Whoever looks at all labels of a step once, and reads what was found together with the loss, says so with
``labels_known``: then no op waits, and a label that is no class counts as ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError

ALL_LEGAL = -(2**63)
"""Stands for no illegal label; a double holds it exactly."""
_KNOWN: list[None] = []  # as many as there are ``labels_known`` around us, in any thread


@contextmanager
def labels_known() -> Iterator[None]:
    """Let no op inside look for labels that are no class: who calls has looked, and raises where one was found."""
    _KNOWN.append(None)
    try:
        yield
    finally:
        _KNOWN.pop()


def illegal_labels(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return a label of each picture that is neither a class nor ignored, or ALL_LEGAL; does not wait for the device.

    Shapes: labels [B, H, W] -> int64 [B].
    """
    if not labels.numel():
        return torch.full((len(labels),), ALL_LEGAL, dtype=torch.int64, device=labels.device)
    # Least and largest in the labels' own type: a copy in int64 would be eight times what bytes are.
    shown = labels.masked_fill(labels == ignore_index, 0).flatten(1)
    least, largest = shown.amin(1).long(), shown.amax(1).long()
    wrong = torch.where(least < 0, least, largest)
    return wrong.masked_fill((least >= 0) & (largest < num_classes), ALL_LEGAL)


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Look at every label, and wait for the device to; not inside ``labels_known``, nor while a graph is captured.

    Raises: ShapeError for a label that is neither a class nor ``ignore_index``.
    """
    if _KNOWN or (labels.is_cuda and torch.cuda.is_current_stream_capturing()) or not labels.numel():
        return
    worst = int(illegal_labels(labels, num_classes, ignore_index).amax())
    if worst != ALL_LEGAL:
        raise ShapeError(f"upsample_cross_entropy: {illegal_text(worst, num_classes, ignore_index)}")


def illegal_text(label: int, num_classes: int, ignore_index: int) -> str:
    """Return what is said of a label that is no class."""
    return f"every label must be 0 to {num_classes - 1} or the ignored label {ignore_index}, got {label}"


def legal_labels(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return labels as int64, after ``check_labels``; what it was kept from refusing becomes the ignored label.

    Raises: ShapeError as ``check_labels``.
    """
    check_labels(labels, num_classes, ignore_index)
    labels = labels.long()
    return labels.masked_fill((labels < 0) | (labels >= num_classes), ignore_index)


def class_counts(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return how many pixels each class has; labels that are no class count nowhere. Shapes: [B, H, W] -> int64 [K]."""
    if _atomics_are_cheap(labels.device):
        counted = labels[(labels != ignore_index) & (labels >= 0) & (labels < num_classes)]
        return torch.bincount(counted.long(), minlength=num_classes)
    # bincount asks for the largest label, and atomics on so few counters wait for one another: sorted bytes do not.
    ordered = labels.flatten().sort().values.long()
    edges = torch.searchsorted(ordered, torch.arange(num_classes + 1, device=labels.device))
    counts = edges.diff()
    if 0 <= ignore_index < num_classes:
        counts[ignore_index] = 0
    return counts


def _atomics_are_cheap(device: torch.device) -> bool:
    return device.type == "cpu"


def looks_first(at: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what wraps a launcher whose kernel lets any label pass: argument ``at`` of it is ``ignore_index``."""

    def wrap(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(logits: Tensor, labels: Tensor, *rest: Any) -> Any:
            check_labels(labels, logits.shape[1], rest[at - 2])
            return run(logits, labels, *rest)

        return call

    return wrap
