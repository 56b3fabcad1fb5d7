"""Ten steps of training beside official Segmenter's own, where somebody has cloned it.

``SETR_FAST_SEGMENTER_REPO`` names a checkout, ``SETR_FAST_PEER_PYTHON`` an interpreter that has torch, timm, einops and
PyYAML, if it is not this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from setr_fast.checkpoints.export import export, write_export
from setr_fast.checkpoints.load import assemble
from setr_fast.config import Config, read_config, recipe_path
from setr_fast.data.loader import Batch
from setr_fast.models.model import SegmentationModel
from setr_fast.train.optimizer import build_optimizer, set_learning_rate
from setr_fast.train.parallel import LossModule
from setr_fast.train.ranks import Ranks
from setr_fast.train.step import take_step
from tests.checkpoints.random_models import random_spec, random_state

STEPS = 10
RECIPES = {
    "linear": "segmenter_linear_deit_b16_ade20k_512_161728",
    "mask": "segmenter_mask_vit_l16_cityscapes_768_80352",
}


def _prepared(head: str, folder: Path) -> SegmentationModel:
    """Write a random model and ten batches for the code base, and return the model."""
    spec = random_spec("segmenter", head, 1).replace(mlp_ratio=4.0, decoder_mlp_ratio=4.0, dropout=0.0, drop_path=0.0)
    if head == "mask":
        spec = spec.replace(width=spec.decoder_width, num_heads=2, decoder_dropout=0.0, decoder_drop_path=0.0)
    state = random_state(spec, "segmenter", 1)
    write_export(export("segmenter", spec, state), folder / "checkpoint.pth")
    draw = np.random.default_rng(0)
    h, w = spec.image_size
    label = draw.integers(0, spec.num_classes, (STEPS, 2, h, w))
    label[draw.random(label.shape) < 0.1] = 255
    np.savez(folder / "batches.npz", image=draw.normal(size=(STEPS, 2, 3, h, w)), label=label)
    return assemble(spec, state)


@pytest.mark.parametrize("head", RECIPES)
def test_losses_are_those_of_official_segmenter(head: str, tmp_path: Path) -> None:
    repository = os.environ.get("SETR_FAST_SEGMENTER_REPO")
    if not repository:
        pytest.skip("SETR_FAST_SEGMENTER_REPO names no checkout of Segmenter, which is in no registry")
    model = _prepared(head, tmp_path).double()
    config = read_config(recipe_path(RECIPES[head]), Config())
    rates = {"lr": config.optim.lr, "min_lr": config.optim.min_lr}
    (tmp_path / "options.json").write_text(json.dumps(rates))
    python = os.environ.get("SETR_FAST_PEER_PYTHON", sys.executable)
    script = Path(__file__).with_name("segmenter_training.py")
    done = subprocess.run([python, str(script), repository, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    want = json.loads((tmp_path / "trained.json").read_text())

    training = replace(config.train, steps=STEPS, precision="fp32")
    optimizer = build_optimizer(model, config.optim)
    got, learned = [], []
    with np.load(tmp_path / "batches.npz") as batches:
        images, labels = torch.from_numpy(batches["image"]), torch.from_numpy(batches["label"]).to(torch.uint8)
    for step in range(STEPS):
        learned.append(set_learning_rate(optimizer, step, STEPS, config.optim))
        batch = Batch(images[step], labels[step], ["a", "b"])
        alone = Ranks(0, 1, torch.device("cpu"))
        got.append(take_step(model, LossModule(model), optimizer, batch, training, alone, step).loss)
    print(head, max(abs(a - b) / b for a, b in zip(got, want["losses"], strict=True)))  # shown by pytest -rP
    assert learned == pytest.approx(want["rates"], rel=1e-9)
    assert got == pytest.approx(want["losses"], rel=1e-6)
    assert max(got) - min(got) > 0.01 * max(got)
