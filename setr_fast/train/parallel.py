"""How a model is spread over processes: FSDP2 with mixed precision, or replicas; recomputation and compilation.

The order matters: recompute inside, compile around it, shard last (torchtitan's). FSDP2 then gathers a block before its
forward and again before the recomputation in its backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from setr_fast.errors import ConfigError
from setr_fast.models.model import SegmentationModel
from setr_fast.nn.batch_norm import synchronise
from setr_fast.ops import upsample_cross_entropy
from setr_fast.train.criterion import Criterion
from setr_fast.train.options import ParallelConfig, TrainConfig
from setr_fast.train.ranks import Ranks

# What a selective recomputation keeps: the results that cost the most to make again, per byte. Everything else of a
# block (layer norms, GELU, residual sums) is made again. Our own ops are named by their registration.
KEPT = (
    "setr_fast::attention",
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
)


class LossModule(nn.Module):
    """The loss as a forward pass, which is what DistributedDataParallel and autocast wrap."""

    def __init__(
        self,
        model: SegmentationModel,
        criterion: Criterion = upsample_cross_entropy,
        *,
        keeps_blocks: bool = False,
    ) -> None:
        """``keeps_blocks``: sharded blocks stay gathered from their first use in a step to their last."""
        super().__init__()
        self.model, self.criterion, self.keeps_blocks = model, criterion, keeps_blocks

    def forward(self, image_B3HW: Tensor, label_BHW: Tensor) -> tuple[Tensor, Tensor]:
        loss, accuracy = self.model.loss_and_accuracy(image_B3HW, label_BHW, self.criterion)
        return loss, accuracy


def spread(
    model: SegmentationModel,
    ranks: Ranks,
    config: TrainConfig,
    parallel: ParallelConfig,
    *,
    fsdp: bool,
    bf16: bool,
    criterion: Criterion = upsample_cross_entropy,
) -> nn.Module:
    """Prepare the model for training on these processes and return the module that gives loss and pixel accuracy."""
    synchronise(model)
    for block in model.encoder.blocks:
        forward: Callable[..., Any] = block.forward
        if config.recompute != "none":
            forward = functools.partial(_recomputed, forward, config.recompute == "selective")
        if config.compile:
            _draw_as_eager()
            forward = torch.compile(forward, dynamic=False)
        if forward != block.forward:
            block.forward = forward
    if fsdp:
        _shard(model, ranks, parallel, bf16=bf16)
        return LossModule(model, criterion, keeps_blocks=parallel.reshard == "never")
    loss = LossModule(model, criterion)
    if ranks.world_size == 1:
        return loss
    return DistributedDataParallel(loss, broadcast_buffers=False, gradient_as_bucket_view=True)


def _draw_as_eager() -> None:
    """Have compiled code take its random numbers where eager code does, so that both drop the same values."""
    from torch._inductor import config

    config.fallback_random = True


def mesh_of(ranks: Ranks, parallel: ParallelConfig) -> DeviceMesh:
    """Return the mesh that weights are sharded over: one dimension, or (replicas, shards) for several copies."""
    replicas = parallel.replicas or max(1, ranks.world_size // ranks.local_world_size)
    if ranks.world_size % replicas:
        raise ConfigError(
            f"fsdp.replicas: must divide the number of processes ({ranks.world_size}), got {parallel.replicas}"
        )
    kind = ranks.device.type
    if replicas == 1:
        return init_device_mesh(kind, (ranks.world_size,), mesh_dim_names=("shard",))
    mesh = init_device_mesh(kind, (replicas, ranks.world_size // replicas), mesh_dim_names=("replicate", "shard"))
    ranks.keep_time(*mesh.get_all_groups())
    return mesh


def _shard(model: SegmentationModel, ranks: Ranks, parallel: ParallelConfig, *, bf16: bool) -> None:
    """Shard the encoder block by block, then the rest (FSDP2).

    With bf16 the blocks are gathered and computed in bf16 and their gradients reduced in fp32. What the root holds
    (embedding, heads, batch norms) stays fp32 and is computed under autocast.
    """
    mesh = mesh_of(ranks, parallel)
    shards = mesh.size(-1)
    reshard: bool | int = parallel.reshard == "always"
    if parallel.reshard == "host" and 1 < ranks.local_world_size < shards and shards % ranks.local_world_size == 0:
        reshard = ranks.local_world_size
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    blocks = list(model.encoder.blocks)
    for first in range(0, len(blocks), parallel.group):
        chosen = blocks[first : first + parallel.group]
        fully_shard(chosen, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    # None of these calls another: the inner one's end would free the root's weights, to be gathered again.
    for method in ("loss_and_accuracy", "logits"):
        register_fsdp_forward_method(model, method)


def synchronise_gradients(module: nn.Module, wanted: bool) -> None:
    """Reduce gradients over the processes in the next backward pass, or only add them up here.

    Weights that stay gathered for the backward pass then stay for the next part of the batch, too.
    """
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = wanted
    elif isinstance(module, LossModule) and isinstance(module.model, FSDPModule):
        module.model.set_requires_gradient_sync(wanted)
        module.model.set_reshard_after_backward(wanted, recurse=module.keeps_blocks)


@torch.no_grad()
def fill(model: nn.Module, source: nn.Module, ranks: Ranks) -> None:
    """Give a sharded model that starts on the meta device the values of the first rank's ``source`` (a collective).

    One tensor at a time is sent: no rank but the first ever holds the whole model.
    """
    model.to_empty(device=ranks.device)
    values = dict(source.named_parameters()) | dict(source.named_buffers())
    for name, own in [*model.named_parameters(), *model.named_buffers()]:
        value = values[name].detach()
        if not isinstance(own, DTensor):
            full = value.to(ranks.device) if ranks.is_first else torch.empty_like(value, device=ranks.device)
            if ranks.world_size > 1:
                torch.distributed.broadcast(full, 0)
            own.copy_(full)
            continue
        full = value.to(ranks.device) if ranks.is_first else torch.empty(own.shape, dtype=own.dtype, device=own.device)
        own.copy_(distribute_tensor(full, own.device_mesh, own.placements))


def _recomputed(forward: Callable[..., Any], selective: bool, *args: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args)
    context = functools.partial(create_selective_checkpoint_contexts, _keep_or_redo) if selective else None
    extra: dict[str, Any] = {} if context is None else {"context_fn": context}
    return checkpoint(forward, *args, use_reentrant=False, **extra)


def _keep_or_redo(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    name = op.name() if hasattr(op, "name") else str(op)
    return CheckpointPolicy.MUST_SAVE if name.split(".")[0] in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
