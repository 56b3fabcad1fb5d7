"""Batch norm of a training step from statistics that came with the map, in one process or over all of a group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast.nn.batch_norm import SyncedBatchNorm


class _FromStatistics(torch.autograd.Function):
    """PyTorch's batch norm, less the pass that works the statistics out."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        group: Any,
    ) -> Tensor:
        ctx.eps, ctx.group = eps, group
        ctx.save_for_backward(y, mean, (variance + eps).rsqrt(), count, weight)
        return F.batch_norm(y, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, mean, inverse, count, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)  # as y lies
        alone = ctx.group is None
        dy, dweight, dbias = torch.ops.aten.native_batch_norm_backward.default(
            grad, y, weight, None, None, mean, inverse, True, ctx.eps, [alone, True, True]
        )
        if not alone:  # the sums behind dweight and dbias, over all processes, are what dy takes
            sums = torch.stack((dbias, dweight)).to(mean.dtype)
            dist.all_reduce(sums, group=ctx.group)
            scale = weight.to(mean.dtype) * inverse
            of_y = -scale * inverse * sums[1] / count
            rest = -scale * sums[0] / count - of_y * mean
            scale, of_y, rest = (each[:, None, None] for each in (scale, of_y, rest))
            dy = (grad * scale + y * of_y + rest).to(y.dtype)
        return dy, None, None, None, dweight, dbias, None, None


def batch_norm(y_BCHW: Tensor, mean_C: Tensor, spread_C: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Return what ``norm`` gives in training, and update its running statistics as it does.

    Shapes: mean and spread (sum of squared deviations) of y over pictures and pixels.
    """
    count = mean_C.new_full((1,), y_BCHW.numel() // y_BCHW.shape[1])
    group = _group(norm)
    if group is not None:
        count, mean_C, spread_C = _merged(count, mean_C, spread_C, group)
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean_C.to(norm.running_mean.dtype), share)
        norm.running_var.lerp_((spread_C / (count - 1)).to(norm.running_var.dtype), share)
    out: Tensor = _FromStatistics.apply(
        y_BCHW, mean_C, spread_C / count, count, norm.weight, norm.bias, norm.eps, group
    )
    return out


def _group(norm: nn.BatchNorm2d) -> Any:
    """Return the processes that share their statistics, or None for one alone."""
    shared = isinstance(norm, SyncedBatchNorm) and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if shared else None


def _merged(count: Tensor, mean_C: Tensor, spread_C: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean and spread of all processes, merged in the order of ranks: every one gets the same bits."""
    ours = torch.cat((count, mean_C, spread_C))
    parts = [torch.empty_like(ours) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, ours, group=group)
    every = torch.stack(parts)
    counts, means, spreads = every[:, :1], every[:, 1 : 1 + len(mean_C)], every[:, 1 + len(mean_C) :]
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    return total, mean, (spreads + counts * (means - mean).square()).sum(0)
