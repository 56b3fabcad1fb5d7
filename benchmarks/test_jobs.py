"""Whole jobs from files to result, as a user starts them: train some steps on a folder, evaluate a folder.

The pictures are made here. Baseline: the same command with every op forced to its reference.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import setr_fast
from benchmarks.job_contest import compare_jobs
from benchmarks.model_sides import FAST_HALF, HALF, OURS
from benchmarks.rows import Parity
from setr_fast.cli import main
from setr_fast.ops._op import REFERENCE

CLASSES, SIZE = 12, (240, 320)
STEPS, BATCH, CROP, PICTURES = 4, 4, 128, 4
SECONDS, DTYPE = 10.0, HALF if FAST_HALF else "float32"
LOSS_OFF = 1e-3
"""How far, of its size, a mean loss of the steps may lie from the reference's: each step carries rounding on."""
SCORE_OFF = 1e-3
"""How far the pixel accuracy may: near ties fall either way by rounding."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures and masks in which each class has a colour of its own."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    colours = rng.integers(0, 256, (CLASSES, 3))
    for split, index in itertools.product(("train", "val"), range(PICTURES)):
        classes = np.kron(rng.integers(0, CLASSES, (SIZE[0] // 20, SIZE[1] // 20)), np.ones((20, 20), int))
        noisy = np.clip(colours[classes] + rng.normal(0, 20, (*SIZE, 3)), 0, 255)
        for kind, pixels in (("images", noisy), ("masks", classes)):
            path = root / split / kind / f"p{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def _train(root: Path, run_dir: Path) -> list[float]:
    """Run the command; return the losses that it logged."""
    options = {
        "run-dir": run_dir,
        "model.name": "setr_pup_vit_t16",
        "data.root": root,
        "data.num-classes": CLASSES,
        "train.steps": STEPS,
        "train.batch-size": BATCH,
        "train.log-every": 1,
        "train.validate-every": STEPS,
        "train.overlays": 0,
        "optim.warmup-steps": 1,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["train", *flags, "--augment.crop", str(CROP), str(CROP)]) == 0
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def _evaluate(root: Path, checkpoint: Path, out: Path) -> list[float]:
    """Run the command; return the pixel accuracy that it wrote."""
    assert main(["eval", "--checkpoint", str(checkpoint), "--data.root", str(root), "--out", str(out)]) == 0
    return [json.loads(out.read_text())["aAcc"]]


def test_training_on_a_folder(root: Path, benchmark: Any, record: Callable[[Any], None], tmp_path: Path) -> None:
    number = itertools.count()
    compare_jobs(
        _sides(lambda: _train(root, tmp_path / f"run{next(number)}")),
        partial(_verdict, LOSS_OFF),
        REFERENCE,
        OURS,
        benchmark,
        record,
        seconds=SECONDS,
        dtype=DTYPE,
        name="train",
        case=f"setr_pup_vit_t16, {STEPS} steps of {BATCH} crops of {CROP}px, validation and checkpoint",
        size=[BATCH, CROP, CROP],
        pictures=STEPS * BATCH,
    )


def test_evaluating_a_folder(root: Path, benchmark: Any, record: Callable[[Any], None], tmp_path: Path) -> None:
    _train(root, tmp_path / "run")
    number = itertools.count()
    compare_jobs(
        _sides(lambda: _evaluate(root, tmp_path / "run", tmp_path / f"{next(number)}.json")),
        partial(_verdict, SCORE_OFF),
        REFERENCE,
        OURS,
        benchmark,
        record,
        seconds=SECONDS,
        dtype=DTYPE,
        name="evaluate",
        case=f"setr_pup_vit_t16, {PICTURES} pictures of {SIZE[0]}x{SIZE[1]}",
        size=[PICTURES, *SIZE],
        pictures=PICTURES,
    )


def _sides(run: Callable[[], list[float]]) -> dict[str, Callable[[], list[float]]]:
    def plain() -> list[float]:
        with setr_fast.backend(REFERENCE):
            return run()

    return {REFERENCE: plain, OURS: run}


def _verdict(allowed: float, found: list[list[float]], want: list[float]) -> Parity:
    off = max(abs(got - right) / abs(right) for values in found for got, right in zip(values, want, strict=True))
    why = "" if off <= allowed else f"a result is off by {off:.2%}, may be by {allowed:.2%}"
    return Parity(not why, off, allowed, len(found), why)
