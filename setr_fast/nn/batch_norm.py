"""Batch normalisation over the pixels of all processes, in 32 bits, on any device.

``torch.nn.SyncBatchNorm`` refuses CPU tensors; its arithmetic is the same: statistics are combined as counts, means
and squared deviations, and the gradient sums are added up over the processes.

Source: Ioffe, Szegedy 2015, arXiv 1502.03167; combination of moments after Chan, Golub, LeVeque 1983,
doi 10.1080/00031305.1983.10483115.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

_PIXELS = (0, 2, 3)


class SyncedBatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose training statistics are those of the batches of all processes together."""

    def forward(self, x_BChw: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x_BChw)
        out, mean, var, count = _Synced.apply(x_BChw, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            unbiased = var * (count / (count - 1).clamp_min(1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        return out


def synchronise(model: nn.Module) -> nn.Module:
    """Replace every batch norm inside ``model`` by a synchronised one with the same tensors; return the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _synced(child))
    return model


def _synced(plain: nn.BatchNorm2d) -> SyncedBatchNorm:
    with torch.device("meta"):
        new = SyncedBatchNorm(plain.num_features, eps=plain.eps, momentum=plain.momentum)
    new.weight, new.bias = plain.weight, plain.bias
    new.running_mean, new.running_var = plain.running_mean, plain.running_var
    new.num_batches_tracked = plain.num_batches_tracked
    return new.train(plain.training)


class _Synced(torch.autograd.Function):
    """Normalised values, mean, biased variance and number of values, each over all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        wide = torch.promote_types(x.dtype, torch.float32)
        var, mean = torch.var_mean(x.to(wide), _PIXELS, correction=0)
        own = torch.cat([mean, var, mean.new_full((1,), x.numel() // x.shape[1])]).double()
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(every, own)
        means, variances, counts = torch.stack(every).split([len(mean), len(mean), 1], dim=1)
        count = counts.sum()
        mean_64 = (means * counts).sum(0) / count
        var_64 = ((variances + (means - mean_64).square()) * counts).sum(0) / count
        mean, var = mean_64.to(wide), var_64.to(wide)
        out = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, (var_64 + eps).rsqrt().to(wide), count)
        ctx.mark_non_differentiable(mean, var, count)
        return out, mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        shape = (1, -1, 1, 1)
        dy, centred = grads[0].to(mean.dtype), x.to(mean.dtype) - mean.view(shape)
        own = torch.stack([dy.sum(_PIXELS), (dy * centred).sum(_PIXELS)]).double()
        grad_weight, grad_bias = own[1].to(mean.dtype) * scale, own[0].to(mean.dtype)
        dist.all_reduce(own)
        mean_dy, mean_dy_centred = (own / count).to(mean.dtype)
        factor = (scale * weight).view(shape)
        dx = (dy - mean_dy.view(shape) - centred * (scale.square() * mean_dy_centred).view(shape)) * factor
        return dx.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None
