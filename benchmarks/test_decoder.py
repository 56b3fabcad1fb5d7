"""Rows of SETR-PUP's decoder (1024 channels in, 32x32 tokens, 150 classes) against the plain order of its operations.

The baseline is the better of PyTorch's two memory layouts, on the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contest import Contest, Side
from benchmarks.machine import DEVICE
from benchmarks.networks import CLASSES, inferring
from benchmarks.outcome_rows import finish, rows_of
from benchmarks.ring import Arguments, draw
from setr_fast.measure import clocked, quantiles
from setr_fast.models.catalog import model_spec
from setr_fast.models.heads.pup import pup_head
from setr_fast.models.heads.upsampling import UpsamplingHead
from setr_fast.nn.embed import tokens_to_map
from setr_fast.shapes import Grid

GRID = Grid.covering((512, 512), 16)
BATCH = 16 if DEVICE == "cuda" else 1
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.full)]
OURS = "ours"
LAYOUTS = {"eager": torch.contiguous_format, "eager, channels_last": torch.channels_last}
SIDES = (OURS, *LAYOUTS)
LIKE = {OURS: "eager", **{name: name for name in LAYOUTS}}  # each layout is plain PyTorch, with an error of its own
LIKE_TRAINED = LIKE | {OURS: "eager, channels_last"}
"""In training ours keeps that layout, and its convolutions are PyTorch's: with every op forced to its reference the
logits are as far from float64 (1.4e-5 of 2.3; the other layout 2e-6)."""
Run = Callable[[Tensor], Tensor]


def decoder(dtype: torch.dtype, seed: int) -> UpsamplingHead:
    """Return the head with statistics of a trained one: no channel dead, none exploding."""
    torch.manual_seed(seed)
    head = pup_head(model_spec("setr_pup_vit_l16", CLASSES, 512))
    for stage in head.stages:
        stage.bn.running_var.fill_(0.05)  # about what a convolution with PyTorch's first weights gives
    return head.to(DEVICE, dtype)


def plain(head: UpsamplingHead, layout: torch.memory_format, tokens_BND: Tensor) -> Tensor:
    """Convolution, batch norm, ReLU, upsampling; the classifier before the last one, as published."""
    x = tokens_to_map(head.norm(tokens_BND), GRID).contiguous(memory_format=layout)
    for stage, scale in zip(head.stages, head.scales, strict=True):
        x = F.relu(stage.bn(stage.conv(x)), inplace=True)
        if scale > 1:
            x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    return head.classifier(x)


def side(name: str, head: UpsamplingHead) -> Run:
    """Return one side as a function of tokens; it may change the layout of the weights."""
    if name == OURS:
        return lambda tokens: head((tokens,), GRID)
    head.to(memory_format=LAYOUTS[name])
    return lambda tokens: plain(head, LAYOUTS[name], tokens)


class Pulled:
    """A pass and its gradients; the clock sees the backward alone where that is asked for."""

    def __init__(self, name: str, head: UpsamplingHead) -> None:
        self.run = side(name, head)
        # Batch statistics cancel the gradient of a bias before them.
        self.weights = [p for n, p in head.named_parameters() if not n.endswith("conv.bias")]
        self.elapsed = 0.0

    def __call__(self, tokens: Tensor, pull: Tensor) -> list[Tensor]:
        """Return the logits and the gradients of tokens and weights."""
        tokens = tokens.detach().requires_grad_()
        found = [self.run(tokens)]
        wanted = [tokens, *self.weights]
        self.elapsed += clocked(lambda: found.extend(torch.autograd.grad(found[0], wanted, pull)))
        return [found[0].detach(), *found[1:]]

    def backward_seconds(self) -> float:
        """Return what the backwards since it was last asked took."""
        elapsed, self.elapsed = self.elapsed, 0.0
        return elapsed


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_inference(dtype: torch.dtype, benchmark: Any, record: Callable[[Any], None], seed: int) -> None:
    runs = {name: inferring(side(name, decoder(dtype, seed).eval())) for name in SIDES}
    exact = inferring(side("eager", decoder(dtype, seed).eval().double()))

    def make(index: int) -> Arguments:
        return (draw(dtype, seed + index)(BATCH, GRID.tokens, 1024),)

    sides = {name: Side(run, dtype, LIKE[name], ours=name == OURS) for name, run in runs.items()}
    _compare(sides, make, exact, "inference", benchmark, record)


@pytest.mark.full
@pytest.mark.parametrize("direction", ["forward and backward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_training(dtype: torch.dtype, direction: str, benchmark: Any, record: Callable[[Any], None], seed: int) -> None:
    """Batch statistics; forward and backward, or the backward alone."""
    runs = {name: Pulled(name, decoder(dtype, seed).train()) for name in SIDES}
    exact = Pulled("eager", decoder(dtype, seed).train().double())

    def make(index: int) -> Arguments:
        values = draw(dtype, seed + index)
        return values(BATCH, GRID.tokens, 1024), values(BATCH, CLASSES, 256, 256)

    sides = {}
    for name, run in runs.items():
        clock = run.backward_seconds if direction == "backward" else None
        sides[name] = Side(run, dtype, LIKE_TRAINED[name], ours=name == OURS, clock=clock)
    _compare(sides, make, exact, direction, benchmark, record)


def _compare(
    sides: dict[str, Side],
    make: Callable[[int], Arguments],
    exact: Callable[..., Any],
    direction: str,
    benchmark: Any,
    record: Callable[[Any], None],
) -> None:
    contest = Contest(sides, make, lambda arguments: exact(*(a.double() for a in arguments)))
    outcome = contest.run(rounds=9, seconds=6.0, memory=direction != "backward")
    rows = rows_of(
        contest,
        outcome,
        min(LAYOUTS, key=lambda name: quantiles(outcome.seconds[name])["median"]),
        kind="model",
        name="pup_decoder",
        case=f"1024 channels, 512px, {CLASSES} classes, batch {BATCH}",
        direction=direction,
        size=[BATCH, 512, 512],
        pictures=BATCH,
        chosen=OURS,
    )
    record(rows)
    finish(rows, outcome, benchmark, sides[OURS].run, contest.ring.next(0))
