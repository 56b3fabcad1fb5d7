"""A comparison per head: pictures to class maps, and one training step, from the plain reference to everything of ours.

Small encoders by default; ViT-L at 512 and 768 pixels with ``-m full``, on a card by default.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import setr_fast
from benchmarks.contest import Contest
from benchmarks.machine import DEVICE
from benchmarks.model_sides import captured, chosen_side, ladder, ops_of
from benchmarks.outcome_rows import finish, rows_of
from benchmarks.ring import Arguments
from benchmarks.selection import is_full
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.ops import upsample_argmax
from setr_fast.ops._op import REFERENCE

HEADS = ("setr_naive", "setr_pup", "setr_mla", "segmenter_linear", "segmenter_mask")
SMALL = [("vit_t16", 256, 1)]
LARGE = [("vit_l16", 512, 1), ("vit_l16", 768, 1)] if DEVICE == "cpu" else [("vit_l16", 512, 16), ("vit_l16", 768, 8)]
CLASSES = 150
NOTHING_RANDOM = {"drop_path": 0.0, "dropout": 0.0, "decoder_dropout": 0.0, "decoder_drop_path": 0.0}


def comparisons() -> Iterator[Any]:
    """Yield head, encoder, side of the picture, batch."""
    for head in HEADS:
        for encoder, size, batch in (*SMALL, *LARGE):
            default = (encoder == SMALL[0][0]) == (DEVICE == "cpu")
            marks = [] if default else [pytest.mark.full]
            yield pytest.param(head, encoder, size, batch, marks=marks, id=f"{head}_{encoder}-{size}px")


def network(head: str, encoder: str, size: int, seed: int) -> SegmentationModel:
    torch.manual_seed(seed)
    return settled(create_model(f"{head}_{encoder}", CLASSES, size, **NOTHING_RANDOM).to(DEVICE))


def settled(model: SegmentationModel) -> SegmentationModel:
    """Give batch norms statistics of a trained network: with PyTorch's first ones all channels would fade."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.05)
    return model


def pictures(seed: int, batch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, size, size, 3), generator=generator, dtype=torch.uint8).to(DEVICE)


@pytest.mark.parametrize(("head", "encoder", "size", "batch"), list(comparisons()))
def test_inference(
    head: str,
    encoder: str,
    size: int,
    batch: int,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
    pytestconfig: pytest.Config,
) -> None:
    """Bytes in, a class per pixel out. Held to float64: the logits; beside it, how many pixels' classes agree."""
    model = network(head, encoder, size, seed).eval()
    exact = copy.deepcopy(model).double()

    def answer(net: SegmentationModel, image: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            logits = net.logits(image)
            return logits, upsample_argmax(logits, net.resize_size(net.grid(image)), net.spec.align_corners)

    def run(image: Tensor) -> tuple[Tensor, Tensor]:
        return answer(model, image)

    def make(index: int) -> Arguments:
        return (pictures(seed + index, batch, size),)

    first = make(0)
    sides, not_run = ladder(
        run, ops_of(lambda: run(*first)), full=is_full(pytestconfig), graph=lambda: captured(run, first)
    )
    contest = Contest(sides, make, lambda a: _plainly(answer, exact, *a), not_run, compared=lambda result: [result[0]])
    outcome = contest.run(rounds=9, seconds=4.0)
    truth = _plainly(answer, exact, *first)[1]
    agreement = {n: float((contest.sides[n].run(*first)[1] == truth).float().mean()) for n in outcome.seconds}
    rows = _rows(contest, outcome, head, encoder, size, batch, "inference", agreement)
    record(rows)
    finish(rows, outcome, benchmark, run, first)


@pytest.mark.parametrize(("head", "encoder", "size", "batch"), list(comparisons()))
def test_training_step(
    head: str,
    encoder: str,
    size: int,
    batch: int,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
    pytestconfig: pytest.Config,
) -> None:
    """Forward, backward, AdamW on two pictures at least; at learning rate 0: each step starts from the same weights.

    Held to float64: the loss and all gradients, in one vector.
    """
    batch = max(batch, 2)
    model = network(head, encoder, size, seed).train()
    exact = copy.deepcopy(model).double()
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
    sides, not_run = ladder(step, ops_of(lambda: step(*first)), full=is_full(pytestconfig), graph=None)
    sides = {name: side for name, side in sides.items() if not name.startswith("+")}
    contest = Contest(
        sides,
        make,
        lambda a: _plainly(gradients, exact, *a),
        not_run,
        compared=lambda result: [result[0], torch.cat([g.flatten() for g in result[1]])],
    )
    outcome = contest.run(rounds=9, seconds=5.0)
    rows = _rows(contest, outcome, head, encoder, size, batch, "training step", {})
    record(rows)
    finish(rows, outcome, benchmark, step, first)


def _plainly(run: Callable[..., Any], *args: Any) -> Any:
    with setr_fast.backend(REFERENCE):
        return run(*args)


def _rows(
    contest: Contest,
    outcome: Any,
    head: str,
    encoder: str,
    size: int,
    batch: int,
    direction: str,
    agreement: dict[str, float],
) -> list[Any]:
    return rows_of(
        contest,
        outcome,
        REFERENCE,
        kind="model",
        name=f"{head}_{encoder}",
        case=f"{size}px, {CLASSES} classes, batch {batch}",
        direction=direction,
        size=[batch, size, size],
        pictures=batch,
        chosen=chosen_side(),
        agreement=agreement,
    )
