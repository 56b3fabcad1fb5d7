"""A comparison per head: pictures to class maps, and one training step, from the plain reference to everything of ours.

Small encoders by default; ViT-L at 512 and 768 pixels with ``-m full``, on a card by default.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.contest import Contest
from benchmarks.machine import DEVICE
from benchmarks.memory import lacking
from benchmarks.model_sides import captured, chosen_side, ladder, ops_of, with_kernels
from benchmarks.networks import CLASSES, HEADS, facts, network, pictures, plainly
from benchmarks.outcome_rows import finish, rows_of
from benchmarks.ring import Arguments
from benchmarks.selection import is_full
from setr_fast.models.model import SegmentationModel
from setr_fast.ops import upsample_argmax

COMPARED = 2**18
"""Values of each parameter's gradient that are held to the truth: every one of a small encoder, of a large one so many
at even distances, since whole truths in float64 would take more memory than the steps."""
HEAP = 1.4
"""Times what is in use that the process takes: freed memory stays its own."""
SMALL = [("vit_t16", 256, 1)]
LARGE = [("vit_l16", 512, 1), ("vit_l16", 768, 1)] if DEVICE == "cpu" else [("vit_l16", 512, 16), ("vit_l16", 768, 8)]


def comparisons() -> Iterator[Any]:
    """Yield head, encoder, side of the picture, batch, and whether kernels that no card has run yet come first."""
    for untried in (False, True) if DEVICE == "cuda" else (False,):  # apart, as they may take the card with them
        for head, (encoder, size, batch) in product(HEADS, (*SMALL, *LARGE)):
            default = (encoder == SMALL[0][0]) == (DEVICE == "cpu")
            marks = [] if default else [pytest.mark.full]
            name = f"{head}_{encoder}-{size}px" + ("-all_kernels" if untried else "")
            yield pytest.param(head, encoder, size, batch, untried, marks=marks, id=name)


@pytest.mark.parametrize(("head", "encoder", "size", "batch", "untried"), list(comparisons()))
def test_inference(
    head: str,
    encoder: str,
    size: int,
    batch: int,
    untried: bool,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
    pytestconfig: pytest.Config,
) -> None:
    """Bytes in, a class per pixel out. Held to float64: the logits; beside it, how many pixels' classes agree."""
    model = network(f"{head}_{encoder}", size, seed).eval()
    _skip_without_memory(model, batch, training=False)
    exact = copy.deepcopy(model).double()

    def answer(net: SegmentationModel, image: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # torch.compile fails on tensors made under inference_mode inside what it compiles
            logits = net.logits(image)
            return logits, upsample_argmax(logits, net.resize_size(net.grid(image)), net.spec.align_corners)

    def run(image: Tensor) -> tuple[Tensor, Tensor]:
        return answer(model, image)

    def make(index: int) -> Arguments:
        return (pictures(seed + index, batch, size),)

    first = make(0)
    graph = partial(captured, run, first)
    if untried:
        sides, not_run = with_kernels(run, graph=graph)
    else:
        sides, not_run = ladder(run, ops_of(lambda: run(*first)), full=is_full(pytestconfig), graph=graph)
    contest = Contest(sides, make, lambda a: plainly(answer, exact, *a), not_run, compared=lambda result: [result[0]])
    outcome = contest.run(rounds=9, seconds=4.0)
    truth = plainly(answer, exact, *first)[1]
    agreement = {n: float((contest.sides[n].run(*first)[1] == truth).float().mean()) for n in outcome.seconds}
    common = facts(f"{head}_{encoder}", size, batch, "inference", *_kernels(untried))
    base = next(iter(sides))
    rows = rows_of(contest, outcome, base, kind="model", chosen=chosen_side(), agreement=agreement, **common)
    record(rows)
    finish(rows, outcome, benchmark, run, first)


@pytest.mark.parametrize(("head", "encoder", "size", "batch", "untried"), list(comparisons()))
def test_training_step(
    head: str,
    encoder: str,
    size: int,
    batch: int,
    untried: bool,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
    pytestconfig: pytest.Config,
) -> None:
    """Forward, backward, AdamW at learning rate 0: each step starts from the same weights.

    Small encoders take two pictures, a large one on a processor takes one. Held to float64: the loss and the gradients.
    """
    batch = 2 if encoder == SMALL[0][0] else batch
    model = _held_open(network(f"{head}_{encoder}", size, seed).train())
    _skip_without_memory(model, batch, training=True)
    exact = _recomputing(copy.deepcopy(model).double())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def gradients(net: SegmentationModel, image: Tensor, label: Tensor) -> tuple[Tensor, list[Tensor]]:
        net.zero_grad(set_to_none=True)
        loss = net.loss(image, label)
        loss.backward()
        return loss.detach(), [p.grad for p in net.parameters() if p.grad is not None]

    def step(image: Tensor, label: Tensor) -> tuple[Tensor, list[Tensor]]:
        found = gradients(model, image, label)
        optimizer.step()
        return found

    def make(index: int) -> Arguments:
        generator = torch.Generator().manual_seed(seed + index)
        label = torch.randint(0, CLASSES, (batch, size, size), generator=generator, dtype=torch.uint8)
        return pictures(seed + index, batch, size), label.to(DEVICE)

    first = make(0)
    if untried:
        sides, not_run = with_kernels(step, graph=None)
    else:
        sides, not_run = ladder(step, ops_of(lambda: step(*first)), full=is_full(pytestconfig), graph=None)
    sides = {name: side for name, side in sides.items() if not name.startswith("+")}
    model.zero_grad()
    optimizer.state.clear()  # room for the truth in float64: three times the weights' bytes, gradients included
    contest = Contest(
        sides,
        make,
        lambda a: plainly(gradients, exact, *a),
        not_run,
        compared=lambda result: [result[0], torch.cat([_evenly(g) for g in result[1]])],
    )
    exact.to("meta")  # no truth is asked of it any more
    outcome = contest.run(rounds=9, seconds=5.0)
    common = facts(f"{head}_{encoder}", size, batch, "training step", *_kernels(untried))
    rows = rows_of(contest, outcome, next(iter(sides)), kind="model", chosen=chosen_side(), **common)
    record(rows)
    finish(rows, outcome, benchmark, step, first)


def _kernels(untried: bool) -> list[str]:
    return ["kernels that no card has run first"] if untried else []


def _skip_without_memory(model: SegmentationModel, batch: int, *, training: bool) -> None:
    """Skip where the sides and the truth would not fit into memory, by their weights and what a backward keeps.

    Of each weight a step holds 16 bytes and the truth 16 more than the model's own 4, half of them by turns.
    """
    spec, weights = model.spec, sum(p.numel() for p in model.parameters())
    tokens = batch * math.prod(n // spec.patch_size for n in spec.image_size)
    squares = 16 * spec.num_heads * tokens**2 // batch
    kept = (
        60 * tokens * spec.width * spec.depth
        if training
        else 32 * batch * spec.num_classes * math.prod(spec.image_size)
    )
    if why := lacking(HEAP * ((20 if training else 14) * weights + kept + squares)):
        pytest.skip(why)


@torch.no_grad()
def _held_open(model: SegmentationModel) -> SegmentationModel:
    """Shift what every ReLU of the heads gets until all of it is above zero: at zero rounding decides the gradient.

    The work stays the same. Without this, a value that one side rounds to the other side of zero moves gradients
    further than all rounding else, in the reference as in ours, now and then.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.bias.fill_(10.0)  # of what has mean 0 and standard deviation 1
    return model


def _recomputing(model: SegmentationModel) -> SegmentationModel:
    """Return a model that keeps no block's intermediate results for its backward: the same gradients in less memory."""
    for block in model.encoder.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


def _evenly(gradient: Tensor) -> Tensor:
    """Return at most COMPARED of its values, at a distance that is odd: they come from all rows and all columns."""
    distance = -(-gradient.numel() // COMPARED)
    return gradient.flatten()[:: distance | 1]
