"""Does a training fit, how long does a step take, and what would make it fit: worked out before anything is bought."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.train.devices import REACHED, Device
from setr_fast.train.heap import extent
from setr_fast.train.memory import Profile, profile_step
from setr_fast.train.options import TrainConfig
from setr_fast.train.process import resident_of_a_trainer

# What a run on a CPU holds beside tensors and a small step's process: validation and saving (20 MiB), packed weights,
# work areas, small blocks between large ones (the rest; fitted, docs/training.md has the runs).
LIBRARIES = 65 * 2**20
SPARE = 0.08  # part of the memory that the allocator, the libraries and the display keep for themselves


@dataclass(frozen=True)
class Layout:
    """How a step is spread: what the options of a plan decide."""

    batch: int
    """Samples of all GPUs together."""
    gpus: int
    shards: int
    """GPUs that one copy of the weights is spread over; 1: every GPU has its own."""
    per_host: int
    always: bool
    """Gathered weights are freed after use and gathered again."""
    bf16: bool
    averaged: bool
    adam: bool = True


@dataclass(frozen=True)
class Plan:
    """Bytes by part on the fullest GPU, and seconds of a step."""

    parts: dict[str, int]
    compute: float
    sent: int
    """Bytes that each GPU sends in a step."""
    communication: float

    @property
    def bytes(self) -> int:
        """What a GPU must hold."""
        return sum(self.parts.values())

    @property
    def seconds(self) -> float:
        """Time of a step: communication is hidden behind arithmetic as far as there is any to hide behind."""
        return max(self.compute, self.communication) + 0.1 * min(self.compute, self.communication)


def make_plan(spec: ModelSpec, config: TrainConfig, layout: Layout, device: Device) -> Plan:
    """Return what one GPU holds and how long a step takes."""
    each, blocks, largest = _sizes(spec)
    weights = sum(each)
    own = profile_step(spec, max(1, layout.batch // layout.gpus), config, bf16=layout.bf16)
    held = weights // layout.shards
    wide = 4 * held
    gathered = 0
    if layout.shards > 1:
        width = 2 if layout.bf16 else 4
        rest = weights - blocks
        gathered = 4 * rest + width * (2 * largest if layout.always else blocks) + 4 * largest  # and a gradient
    elif layout.gpus > 1:
        gathered = 4 * 25 * 2**18  # DDP's first bucket; its gradients live in the buckets
    parts = {
        "parameters": wide,
        "validated": 4 * weights if layout.shards > 1 or layout.averaged else 0,  # a whole model of its own
        "gathered": gathered,
        "gradients": wide,
        "optimiser": (2 if layout.adam else 1) * wide + (wide if layout.averaged else 0),
        "activations": own.peak.get("activations", 0),
        "logits": own.peak.get("logits", 0),
    }
    busy = parts["activations"] + parts["logits"]
    if config.accumulate == 1:  # when most activations are there, no gradient is yet
        parts["gradients"] = max(0, wide - busy)
    else:  # sums of the parts are sharded when they are reduced, after the last one
        parts["gradients"] = 4 * weights
    if device.name == "cpu":
        copies = (2 if layout.adam else 1) + (1 if layout.averaged else 0)
        models = 2 if parts["validated"] else 1
        grown = extent(own.blocks, [4 * size for size in each] * models, [4 * size for size in each] * copies)
        parts["allocator"] = LIBRARIES + max(0, grown - sum(parts.values()))
        parts["checkpoint"] = wide * (1 + copies)  # copied before they are written
        parts["process"] = resident_of_a_trainer()
    else:  # the optimiser's step over many tensors at once makes a copy of the gradients' size
        parts["gradients"] = max(parts["gradients"], 2 * wide - busy)
    sent, seconds = communication(weights, blocks, layout, device, config.accumulate)
    return Plan(parts, _compute(own, device), sent, seconds)


def fits(plan: Plan, device: Device) -> bool:
    """Return whether a plan leaves the memory spare that is never ours."""
    return plan.bytes <= device.memory * (1 - SPARE)


def ways_to_fit(
    spec: ModelSpec, config: TrainConfig, layout: Layout, device: Device, enough: int = 3
) -> list[tuple[str, Plan]]:
    """Return options that lower the memory with what each gives, the fastest that fits first.

    They are tried from the cheapest in time to the dearest, until ``enough`` have been found that fit.
    """
    found: list[tuple[str, Plan]] = []
    for name, train, spread in _changes(config, layout):
        found.append((name, make_plan(spec, train, spread, device)))
        if sum(fits(plan, device) for _, plan in found) == enough:
            break
    return sorted(found, key=lambda pair: (not fits(pair[1], device), pair[1].seconds, pair[1].bytes))


def _changes(config: TrainConfig, layout: Layout) -> Iterator[tuple[str, TrainConfig, Layout]]:
    names: list[str] = []
    if not layout.bf16:
        names, layout = [*names, "--train.precision bf16"], replace(layout, bf16=True)
        yield " ".join(names), config, layout
    if layout.gpus > 1 and layout.shards == 1:
        names, layout = [*names, "--fsdp"], replace(layout, shards=layout.gpus)
        yield " ".join(names), config, layout
    own = max(1, layout.batch // layout.gpus)
    levels: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")
    for recompute in levels:
        for accumulate in (1, 2, 4, 8):
            changed = recompute != config.recompute or accumulate != config.accumulate
            if accumulate > own or accumulate < config.accumulate or not changed:
                continue
            extra = [f"--train.recompute {recompute}"] if recompute != "none" else []
            extra += [f"--train.accumulate {accumulate}"] if accumulate > 1 else []
            yield " ".join([*names, *extra]), replace(config, recompute=recompute, accumulate=accumulate), layout
    if layout.shards > 1 and not layout.always:
        parts = min(8, own)
        extra = ["--fsdp.reshard always", "--train.recompute full", f"--train.accumulate {parts}"]
        train = replace(config, recompute="full", accumulate=parts)
        yield " ".join([*names, *extra]), train, replace(layout, always=True)


def _sizes(spec: ModelSpec) -> tuple[list[int], int, int]:
    """Return the numbers of values: of each tensor of the model, of its encoder blocks, of the largest block."""
    with torch.device("meta"):
        model = SegmentationModel(spec)
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.encoder.blocks]
    return [p.numel() for p in model.parameters()], sum(blocks), max(blocks)


def _compute(profile: Profile, device: Device) -> float:
    rates = {True: device.half_flops * REACHED, False: device.single_flops * REACHED}
    return profile.seconds(lambda half: rates[half], device.bandwidth * 0.8)


def communication(weights: int, blocks: int, layout: Layout, device: Device, accumulate: int) -> tuple[int, float]:
    """Return the bytes that each GPU sends in a step and the seconds that takes.

    Ring algorithms: gathering or scattering N bytes over S GPUs sends N (S - 1) / S from each; an all-reduce does both.
    Blocks that are freed after use are gathered twice for each part of the batch, everything else once a step.
    """
    if layout.gpus == 1:
        return 0, 0.0
    speed = device.link if layout.shards <= layout.per_host and layout.shards > 1 else device.network
    if layout.gpus <= layout.per_host:
        speed = device.link
    if layout.shards == 1:
        sent = 2 * 4 * weights * (layout.gpus - 1) / layout.gpus
        return int(sent), sent / speed
    share = (layout.shards - 1) / layout.shards
    width = 2 if layout.bf16 else 4
    gathered = (2 * accumulate if layout.always else 1) * width * blocks + 4 * (weights - blocks)
    inside = (gathered + 4 * weights) * share
    copies = layout.gpus // layout.shards
    between = 2 * 4 * weights / layout.shards * (copies - 1) / copies
    return int(inside + between), inside / speed + between / device.network
