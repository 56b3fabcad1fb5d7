"""Steps of training, loss by loss: the recorded step of each code base, and ten steps of each recipe written out.

The recordings hold one step of each peer: the loss before it, every gradient's norm, batch statistics after it, and
PaddleViT's factor of each learning rate. What follows a step is a formula, which is written out here in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from setr_fast.config import Config, read_config, recipe_path
from setr_fast.data.loader import Batch
from setr_fast.models.model import SegmentationModel
from setr_fast.ops import backend
from setr_fast.train.optimizer import build_optimizer, set_learning_rate
from setr_fast.train.parallel import LossModule
from setr_fast.train.ranks import Ranks
from setr_fast.train.step import take_step
from tests.models.recorded import Recorded, read_recorded

ALONE = Ranks(0, 1, torch.device("cpu"))
RECIPES = {
    "setr-official-naive": "SETR_Naive_768x768_40k_cityscapes_bs_8",
    "setr-official-pup": "SETR_PUP_512x512_160k_ade20k_bs_16",
    "setr-official-mla": "SETR_MLA_768x768_40k_cityscapes_bs_8",
    "mmseg-setr-naive": "setr_vit-l_naive_8xb2-160k_ade20k-512x512",
    "mmseg-setr-pup": "setr_vit-l_pup_8xb2-160k_ade20k-512x512",
    "mmseg-setr-mla": "setr_vit-l-mla_8xb1-160k_ade20k-512x512",
    "mmseg-segmenter-linear": "segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512",
    "mmseg-segmenter-mask": "segmenter_vit-s_mask_8xb1-160k_ade20k-512x512",
    "segmenter-linear": "segmenter_linear_deit_b16_ade20k_512_161728",
    "segmenter-mask": "segmenter_mask_vit_l16_cityscapes_768_80352",
    "paddleseg-setr-naive": "setr_naive_large_cityscapes_769x769_40k",
    "paddleseg-setr-pup": "setr_pup_large_cityscapes_769x769_40k",
    "paddleseg-setr-mla": "setr_mla_large_cityscapes_769x769_40k",
    "paddleseg-segmenter-linear": "segmenter_vit_base_linear_ade20k_512x512_160k",
    "paddleseg-segmenter-mask": "segmenter_vit_base_mask_ade20k_512x512_160k",
    "paddlevit-setr-naive": "SETR_Naive_Large_768x768_40k_cityscapes_bs_8",
    "paddlevit-setr-pup": "SETR_PUP_Large_512x512_160k_ade20k_bs_16",
    "paddlevit-setr-mla": "SETR_MLA_Large_480x480_80k_pascal_context_bs_16",
}
STEPS = 10
TEN = [  # momentum, Nesterov, clipping; the others come with the slow tests
    "mmseg-setr-naive",
    "segmenter-mask",
    "paddlevit-setr-naive",
]


@pytest.fixture
def recorded(request: pytest.FixtureRequest, shared: Path) -> Recorded:
    return read_recorded(shared / "fixtures" / "parity" / request.param)


def _recipe(recorded: Recorded) -> Config:
    config = read_config(recipe_path(RECIPES[recorded.folder.name]), Config())
    return replace(config, train=replace(config.train, steps=STEPS, precision="fp32"))


def _losses(model: SegmentationModel, config: Config, batch: Batch, steps: int) -> Iterator[tuple[float, float]]:
    """Train as the loop does, and yield loss and gradient norm of each step."""
    optimizer = build_optimizer(model, config.optim)
    for step in range(steps):
        set_learning_rate(optimizer, step, STEPS, config.optim)
        outcome = take_step(model, LossModule(model), optimizer, batch, config.train, ALONE, step)
        yield outcome.loss, outcome.norm


def _batch(recorded: Recorded) -> Batch:
    image = recorded.tensor("input")
    return Batch(image, recorded.tensor("labels").to(torch.uint8), [str(index) for index in range(len(image))])


def _multiplier(name: str, recorded: Recorded) -> float:
    """The written rule of each family for the learning rate of a parameter, as a multiple of the recipe's."""
    family = recorded.folder.name
    ten = "-setr-" in f"-{family}" and family != "paddleseg-setr-mla"
    if family.startswith("paddlevit") and name.startswith("aux_heads.") and (".norm." in name or ".bn." in name):
        return 1.0
    return 10.0 if ten and name.startswith(("head.", "aux_heads.")) else 1.0


@pytest.mark.parametrize("recorded", RECIPES, indirect=True)
def test_the_recorded_step_is_taken_by_the_family_s_recipe(recorded: Recorded) -> None:
    """Loss, gradient norms, learning rates, clipping and what every parameter moves, through the loop's own step."""
    config, model = _recipe(recorded), recorded.model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ((loss, norm),) = _losses(model, config, _batch(recorded), 1)
    assert loss == pytest.approx(float(recorded.arrays["train.loss_total"]), rel=1e-5)
    names = [recorded.target(str(key)) for key in recorded.arrays["train.grad_names"]]
    norms = recorded.arrays["train.grad_norms"]
    total = math.sqrt(sum(float(n) ** 2 for name, n in zip(names, norms, strict=True) if name is not None))
    shrunk = 1.0
    if config.train.clip_norm:
        assert norm == pytest.approx(total, rel=1e-3)
        shrunk = min(1.0, config.train.clip_norm / total)
        assert shrunk < 1, "the recording is to show the clipping"
    factors = recorded.arrays.get("train.lr_mult")
    after = dict(model.named_parameters())
    ahead = 1 + config.optim.momentum if config.optim.nesterov else 1.0
    moved = 0
    for index, (name, want) in enumerate(zip(names, norms, strict=True)):
        if name is None or want < 1e-4 * total:  # what batch statistics cancel, and dead ends, have only noise
            continue
        factor = _multiplier(name, recorded)
        if factors is not None:
            assert factor == factors[index], name
        step = (after[name].detach() - before[name]).norm().item()
        exact = config.optim.lr * factor * ahead * shrunk * float(want)
        ulps = 1e-7 * before[name].norm().item()
        assert step == pytest.approx(exact, rel=2e-3, abs=4 * ulps), name
        moved += 1
    assert moved > 20


@pytest.mark.parametrize(
    "recorded",
    [pytest.param(name, marks=() if name in TEN else pytest.mark.slow) for name in RECIPES],
    indirect=True,
)
def test_ten_steps_are_the_written_formula(recorded: Recorded) -> None:
    """Momentum, Nesterov, clipping and the poly schedule by hand, gradients from the reference ops.

    All in float64: at these learning rates the steps double rounding errors, in float32 the last losses of two
    correct programs may differ in the third digit.
    """
    config, batch = _recipe(recorded), _batch(recorded)
    batch = replace(batch, image=batch.image.double())
    got = list(_losses(recorded.model().double(), config, batch, STEPS))
    optim, exact = config.optim, recorded.model().double().train()
    held: dict[str, Tensor] = {}
    want = []
    for step in range(STEPS):
        exact.zero_grad()
        with backend("reference"):
            loss = exact.loss(batch.image, recorded.tensor("labels"))
            loss.backward()
        gradients = {n: p.grad for n, p in exact.named_parameters() if p.requires_grad and p.grad is not None}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        want.append((loss.item(), norm))
        shrunk = min(1.0, config.train.clip_norm / norm) if config.train.clip_norm else 1.0
        for name, parameter in exact.named_parameters():
            if name not in gradients:
                continue
            base = optim.lr * _multiplier(name, recorded)
            rate = (base - optim.min_lr) * (1 - step / STEPS) ** 0.9 + optim.min_lr
            gradient = gradients[name] * shrunk
            held[name] = 0.9 * held[name] + gradient if name in held else gradient.clone()
            parameter.data -= rate * (gradient + 0.9 * held[name] if optim.nesterov else held[name])
    assert want[0][0] == pytest.approx(float(recorded.arrays["train.loss_total"]), rel=1e-5)
    assert [loss for loss, _ in got] == pytest.approx([loss for loss, _ in want], rel=1e-6)
    if config.train.clip_norm:
        assert [norm for _, norm in got] == pytest.approx([norm for _, norm in want], rel=1e-5)
    spread = max(loss for loss, _ in want) - min(loss for loss, _ in want)
    assert spread > 1e-3 * want[0][0], "the steps have to matter"
