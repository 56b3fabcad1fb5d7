"""Ten steps of training beside the official programs' own, where somebody has cloned them.

``SETR_FAST_SEGMENTER_REPO`` and ``SETR_FAST_SETR_REPO`` name checkouts, ``SETR_FAST_PEER_PYTHON`` an interpreter with
what they import (torch, and timm, einops, PyYAML; mmcv 1.2.7, yapf below 0.40), if it is not this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from setr_fast.checkpoints.export import export, write_export
from setr_fast.checkpoints.load import assemble
from setr_fast.config import Config, read_config, recipe_path
from setr_fast.data.loader import Batch
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.train.optimizer import build_optimizer, set_learning_rate
from setr_fast.train.parallel import LossModule
from setr_fast.train.ranks import Ranks
from setr_fast.train.step import take_step
from tests.checkpoints.random_models import random_spec, random_state

STEPS = 10
SEGMENTER = {
    "linear": "segmenter_linear_deit_b16_ade20k_512_161728",
    "mask": "segmenter_mask_vit_l16_cityscapes_768_80352",
}
SETR = {head: f"SETR_{title}_768x768_40k_cityscapes_bs_8" for head, title in
        (("naive", "Naive"), ("pup", "PUP"), ("mla", "MLA"))}  # fmt: skip


def _prepared(spec: ModelSpec, family: str, folder: Path, name: str) -> SegmentationModel:
    """Write a random model and ten batches for the code base, and return the model."""
    spec = spec.replace(dropout=0.0, drop_path=0.0, decoder_dropout=0.0, decoder_drop_path=0.0)
    state = random_state(spec, family, 1)
    write_export(export(family, spec, state), folder / name)
    draw = np.random.default_rng(0)
    h, w = spec.image_size
    label = draw.integers(0, spec.num_classes, (STEPS, 2, h, w))
    label[draw.random(label.shape) < 0.1] = 255
    np.savez(folder / "batches.npz", image=draw.normal(size=(STEPS, 2, 3, h, w)), label=label)
    return assemble(spec, state)


def _theirs(variable: str, script: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return what the code base's own program makes of the folder."""
    (folder / "options.json").write_text(json.dumps(options))
    python = os.environ.get("SETR_FAST_PEER_PYTHON", sys.executable)
    command = [python, str(Path(__file__).with_name(script)), os.environ[variable], str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "trained.json").read_text())
    return found


def _ours(model: SegmentationModel, config: Config, folder: Path) -> tuple[list[float], list[list[float]]]:
    """Return the losses of the same steps here, in float64, and the lowest and highest learning rate of each."""
    optimizer = build_optimizer(model.double(), config.optim)
    losses, rates = [], []
    alone, training = Ranks(0, 1, torch.device("cpu")), replace(config.train, steps=STEPS, precision="fp32")
    with np.load(folder / "batches.npz") as batches:
        images, labels = torch.from_numpy(batches["image"]), torch.from_numpy(batches["label"]).to(torch.uint8)
    for step in range(STEPS):
        set_learning_rate(optimizer, step, STEPS, config.optim)
        values = [group["lr"] for group in optimizer.param_groups]
        batch = Batch(images[step], labels[step], ["a", "b"])
        losses.append(take_step(model, LossModule(model), optimizer, batch, training, alone, step).loss)
        rates.append([min(values), max(values)])
    return losses, rates


def _assert_equal(got: list[float], want: list[float], what: str) -> None:
    print(what, max(abs(a - b) / b for a, b in zip(got, want, strict=True)))  # shown by pytest -rP
    assert got == pytest.approx(want, rel=1e-9)
    assert max(got) - min(got) > 0.01 * max(got)


@pytest.mark.parametrize("head", SEGMENTER)
@pytest.mark.skipif("SETR_FAST_SEGMENTER_REPO" not in os.environ, reason="SETR_FAST_SEGMENTER_REPO names no checkout")
def test_losses_are_those_of_official_segmenter(head: str, tmp_path: Path) -> None:
    spec = random_spec("segmenter", head, 1).replace(mlp_ratio=4.0, decoder_mlp_ratio=4.0)
    if head == "mask":
        spec = spec.replace(width=spec.decoder_width, num_heads=2)
    model = _prepared(spec, "segmenter", tmp_path, "checkpoint.pth")
    config = read_config(recipe_path(SEGMENTER[head]), Config())
    rates = {"lr": config.optim.lr, "min_lr": config.optim.min_lr}
    want = _theirs("SETR_FAST_SEGMENTER_REPO", "segmenter_training.py", tmp_path, rates)
    losses, learned = _ours(model, config, tmp_path)
    assert [highest for _, highest in learned] == pytest.approx(want["rates"], rel=1e-9)
    _assert_equal(losses, want["losses"], head)


@pytest.mark.parametrize("head", SETR)
@pytest.mark.skipif("SETR_FAST_SETR_REPO" not in os.environ, reason="SETR_FAST_SETR_REPO names no checkout")
def test_losses_are_those_of_official_setr(head: str, tmp_path: Path) -> None:
    """Under the optimiser and schedule of the published config, ten steps long; ours under the recipe of its name."""
    spec = random_spec("setr", head, 1)
    side = max(spec.pos_grid)
    size = (side * spec.patch_size,) * 2
    sizes = {"pos_grid": (side, side), "image_size": size, "stride": size, "mlp_ratio": 4.0}
    spec = spec.replace(**sizes, head_channels=256, aux_channels=256)
    model = _prepared(spec, "setr", tmp_path, "model.pth")
    want = _theirs("SETR_FAST_SETR_REPO", "setr_training.py", tmp_path, {"config": SETR[head]})
    losses, learned = _ours(model, read_config(recipe_path(SETR[head]), Config()), tmp_path)
    assert np.array(learned) == pytest.approx(np.array(want["rates"]), rel=1e-9)
    _assert_equal(losses, want["losses"], head)
