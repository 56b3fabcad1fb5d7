"""One optimiser step: the batch in parts, gradients of the global batch's loss, clipping, the NaN policy."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from setr_fast.data.loader import Batch
from setr_fast.errors import DataError, DivergedError
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.nn import chance
from setr_fast.ops._labels import ALL_LEGAL, illegal_labels, illegal_text, labels_known
from setr_fast.train.options import TrainConfig
from setr_fast.train.parallel import synchronise_gradients
from setr_fast.train.ranks import Ranks

MOST_SKIPPED = 10  # steps in a row without a finite loss: more is no accident of a batch


@dataclass(frozen=True)
class Outcome:
    """What a step did: the global batch's loss, pixel accuracy and gradient norm, the same on every rank."""

    loss: float
    accuracy: float
    norm: float

    @property
    def finite(self) -> bool:
        """Whether the step was taken."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def take_step(
    model: SegmentationModel,
    step_loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    ranks: Ranks,
    step: int,
) -> Outcome:
    """Take step number ``step`` (from 0); leave everything as it is where loss or gradient is not finite.

    The loss is that of the global batch: each part's mean is weighted by its share of the pixels that the mean runs
    over, so neither ranks nor parts change it. (Where a loss is no mean over these pixels, as with class weights, OHEM,
    Dice or Lovasz, that is an approximation.) Random draws belong to the samples (module ``chance``).
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    images = batch.image.to(ranks.device, non_blocking=True)
    labels = batch.label.to(ranks.device, non_blocking=True)
    counted = _counted(labels, model.spec)
    wrong_B = illegal_labels(labels, model.spec.num_classes, model.spec.ignore_index)
    sums = ranks.sum(torch.stack((counted.sum(), (wrong_B != ALL_LEGAL).sum().double())))
    everywhere, wrong = sums[0].clamp_min(1), sums[1:]
    if _answers_at_once(ranks.device) and wrong.item():
        raise _no_classes(batch, wrong_B, model.spec, ranks)
    places_B = torch.arange(len(images), device=ranks.device) * ranks.world_size + ranks.rank
    parts = min(config.accumulate, len(images))
    totals = torch.zeros(2, device=ranks.device, dtype=torch.float64)
    for part in range(parts):
        chosen = slice(part * len(images) // parts, (part + 1) * len(images) // parts)
        share = counted[chosen].sum() / everywhere
        synchronise_gradients(step_loss, part == parts - 1)
        _seed(config.seed, step, ranks)
        with chance.places(places_B[chosen]), labels_known():
            with autocast(config, ranks):
                loss, accuracy = step_loss(images[chosen], labels[chosen])
            (loss * (share * ranks.world_size)).backward()  # gradients are averaged over the ranks: times their number
        totals += torch.stack((loss.detach().double(), accuracy.double())) * share
    norm = _clip(model, config.clip_norm, totals)
    # The only wait for the device in a step.
    loss_everywhere, right, any_wrong, norm_read = torch.cat((ranks.sum(totals), wrong, norm.view(1))).tolist()
    if any_wrong:
        raise _no_classes(batch, wrong_B, model.spec, ranks)
    outcome = Outcome(loss_everywhere, right, norm_read)
    if outcome.finite:
        optimizer.step()
    return outcome


def diverged(batch: Batch, outcome: Outcome, step: int, ranks: Ranks) -> tuple[dict[str, Any], DivergedError]:
    """Return the record of a batch without a finite step, and the error that says so (a collective)."""
    names = [name for group in ranks.every(batch.names) for name in group]
    what = "loss" if not math.isfinite(outcome.loss) else "gradient norm"
    value = outcome.loss if what == "loss" else outcome.norm
    record = {"step": step + 1, "loss": str(outcome.loss), "gradient_norm": str(outcome.norm), "samples": names}
    shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
    return record, DivergedError(
        f"train: the {what} is {value} on {shown}; the newest checkpoint is untouched, "
        "lower --optim.lr, set --train.precision fp32 or --train.on-nan skip"
    )


def autocast(config: TrainConfig, ranks: Ranks) -> Any:
    """Return the context in which the network computes."""
    return torch.autocast(ranks.device.type, torch.bfloat16) if uses_bf16(config, ranks) else nullcontext()


def uses_bf16(config: TrainConfig, ranks: Ranks) -> bool:
    """Return whether the network computes in bf16."""
    if config.precision == "auto":
        return has_fast_bf16(ranks.device)
    return config.precision == "bf16"


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether this device multiplies bf16 matrices in hardware faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # younger than the oldest torch we take
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def _counted(labels_BHW: Tensor, spec: ModelSpec) -> Tensor:
    """Return over how many pixels of each sample the loss is a mean. Shapes: labels [B, H, W] -> [B] float64."""
    if spec.loss_averaging == "all":
        size = labels_BHW[0].numel()
        return torch.full((len(labels_BHW),), size, dtype=torch.float64, device=labels_BHW.device)
    return (labels_BHW != spec.ignore_index).sum((1, 2)).double()


def _answers_at_once(device: torch.device) -> bool:
    """Return whether reading a value stops nothing; a card is asked once, at the end of a step."""
    return device.type == "cpu"


def _no_classes(batch: Batch, wrong_B: Tensor, spec: ModelSpec, ranks: Ranks) -> BaseException:
    """Return what to raise for labels that are no class, with their pictures' names (a collective)."""
    named = zip(wrong_B.tolist(), batch.names, strict=True)
    found = [pair for group in ranks.every([pair for pair in named if pair[0] != ALL_LEGAL]) for pair in group]
    names = ", ".join(name for _, name in found[:16]) + (f" and {len(found) - 16} more" if len(found) > 16 else "")
    text = illegal_text(found[0][0], spec.num_classes, spec.ignore_index)
    return ranks.by_one_voice(DataError(f"train: {text} in {names}; correct these masks, no step was taken on them"))


def _clip(model: nn.Module, largest: float, like: Tensor) -> Tensor:
    """Clip the gradient of all parameters to a norm, where one is set; return what it was, a scalar as of ``like``."""
    if not largest:
        return like.new_zeros(())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).to(like)


def _seed(seed: int, step: int, ranks: Ranks) -> None:
    """Seed the generators for a step: the CPU's alike on every rank, a GPU's apart."""
    torch.manual_seed(_mix(seed, step, 0))
    if ranks.device.type == "cuda":
        torch.cuda.manual_seed(_mix(seed, step, ranks.rank))


def _mix(seed: int, step: int, rank: int) -> int:
    """Return one 63-bit seed for (seed, step, rank); neighbours differ in about half their bits."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    value ^= value >> 31
    return (value * 0xD6E8FEB86659FD93 & (2**64 - 1)) >> 1
