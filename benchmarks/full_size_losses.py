"""The losses written plainly on full-size logits: what benchmarks and tests compare with. Autograd gives gradients.

It lies here because other code bases install a package of the name ``tests``, which hides ours from benchmarks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def full_size(logits: Tensor, labels: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return logits [B, K, H, W] of the labels' size."""
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
    return full[..., : labels.shape[1], : labels.shape[2]]


def mmseg_ohem(full: Tensor, labels: Tensor, threshold: float | None, min_kept: int, weights: Tensor | None) -> Tensor:
    """Mean over pixels that are not ignored (by weight) of hard pixels' losses."""
    valid = labels != 255
    losses = F.cross_entropy(full, labels, ignore_index=255, reduction="none")
    wanted = min_kept * len(labels)
    chosen = torch.zeros_like(losses)
    if threshold is None:
        order = losses[valid].sort(descending=True).indices[:wanted]
        inside = torch.zeros_like(losses[valid])
        inside[order] = 1
        chosen[valid] = inside
    else:
        p = full.softmax(1).gather(1, labels.where(valid, 0)[:, None])[:, 0]
        ordered = p[valid].sort().values
        bound = max(float(ordered[min(wanted, len(ordered) - 1)]), threshold)
        chosen[valid & (p < bound)] = 1
    each = valid.to(full.dtype) if weights is None else weights[labels.where(valid, 0)] * valid
    return (losses * chosen.detach() * each).sum() / each.sum()


def paddleseg_ohem(full: Tensor, labels: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Mean over the kept pixels."""
    valid = labels != 255
    losses = F.cross_entropy(full, labels, ignore_index=255, reduction="none")
    if min_kept < int(valid.sum()):
        p = full.softmax(1).gather(1, labels.where(valid, 0)[:, None])[:, 0].detach()
        bound = max(float(p[valid].sort().values[min_kept - 1]), threshold)
        valid = valid & (p < bound)
    return losses[valid].mean()


def focal(full: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    """Mean over pixels that are not ignored."""
    losses = F.cross_entropy(full, labels, ignore_index=255, reduction="none")[labels != 255]
    return (alpha * (1 - torch.exp(-losses)) ** gamma * losses).mean()


def dice(full: Tensor, labels: Tensor, exponent: int, smooth: float, weights: Tensor | None) -> Tensor:
    """Mean over classes, sums over the batch."""
    valid, num_classes = labels != 255, full.shape[1]
    p = full.softmax(1).permute(0, 2, 3, 1)[valid]
    y = F.one_hot(labels[valid], num_classes).to(p.dtype)
    terms = 1 - (2 * (p * y).sum(0) + smooth) / ((p**exponent).sum(0) + y.sum(0) + smooth + 1e-5)
    return (terms if weights is None else terms * weights).mean()


def lovasz(full: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the classes that are present."""
    valid = labels != 255
    p, y = full.softmax(1).permute(0, 2, 3, 1)[valid], labels[valid]
    terms: list[Any] = []
    for index in torch.unique(y).tolist():
        here = (y == index).to(p.dtype)
        errors, order = (here - p[:, index]).abs().sort(descending=True, stable=True)
        truth = here[order]
        jaccard = 1 - (truth.sum() - truth.cumsum(0)) / (truth.sum() + (1 - truth).cumsum(0))
        steps = torch.cat((jaccard[:1], jaccard[1:] - jaccard[:-1]))
        terms.append((errors * steps).sum() * (1 if weights is None else weights[index]))
    return torch.stack(terms).mean()
