"""A loss that is not a number: stop or skip, and which samples it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from setr_fast.config import Config
from setr_fast.data.loader import step_keys
from setr_fast.data.scenes.builtin import BuiltinScenes
from setr_fast.errors import ConfigError, DivergedError
from setr_fast.loss import LossAndAccuracy
from setr_fast.models.model import SegmentationModel
from setr_fast.train import checkpoint
from setr_fast.train.launch import run
from tests.train.processes import start, wait

Make = Callable[..., Config]


def _poison(calls: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss NaN on these calls, counted from 1."""
    judge, count = SegmentationModel.loss_and_accuracy, [0]

    def poisoned(self: SegmentationModel, *args: Any) -> LossAndAccuracy:
        count[0] += 1
        loss, accuracy = judge(self, *args)
        return LossAndAccuracy(loss * float("nan") if count[0] in calls else loss, accuracy)

    monkeypatch.setattr(SegmentationModel, "loss_and_accuracy", poisoned)


def _records(run_dir: Path | None, name: str) -> list[dict[str, object]]:
    assert run_dir is not None
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def test_stop_names_the_samples_and_keeps_the_checkpoint(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison({3}, monkeypatch)
    config = tiny(save_every=1)
    with pytest.raises(DivergedError, match=r"the loss is nan on .*; the newest checkpoint is untouched") as caught:
        run(config, [])
    assert caught.value.exit_code == 5
    (record,) = _records(config.run_dir, "diverged.jsonl")
    assert record["step"] == 3
    keys = step_keys(2, batch_size=4, count=12, seed=0)
    assert record["samples"] == [BuiltinScenes(12, 32, 0, "train").names[index] for _, index in keys]
    assert config.run_dir is not None
    found = checkpoint.newest_intact(config.run_dir / "checkpoints")
    assert found is not None
    assert checkpoint.read_progress(found).step == 2


def test_skip_leaves_the_step_out(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights nor optimiser nor average take part in it; the run goes on with the next batch."""
    _poison({3}, monkeypatch)
    config = tiny(on_nan="skip", save_every=1, keep=6, ema=0.9)
    assert run(config, []) == 0
    assert config.run_dir is not None
    before, after, later = (
        checkpoint.read_tensors(config.run_dir / "checkpoints" / f"step_{step:08d}") for step in (2, 3, 4)
    )
    changed = [key for key in before if not torch.equal(before[key], after[key]) and not key.startswith("buffers/")]
    assert not changed
    assert not torch.equal(after["weights/head.classifier.weight"], later["weights/head.classifier.weight"])
    assert [r["step"] for r in _records(config.run_dir, "diverged.jsonl")] == [3]
    losses = [r["train/loss"] for r in _records(config.run_dir, "metrics.jsonl") if "train/loss" in r]
    assert losses[2] is None
    assert None not in losses[:2] + losses[3:]


def test_skipping_for_ever_is_no_policy(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(set(range(2, 100)), monkeypatch)
    config = tiny(steps=30, validate_every=30, on_nan="skip")
    with pytest.raises(DivergedError):
        run(config, [])
    assert [r["step"] for r in _records(config.run_dir, "diverged.jsonl")] == list(range(2, 12))


def _poison_second_rank() -> None:
    import os

    if os.environ["RANK"] == "1":
        _poison({2}, pytest.MonkeyPatch())


def test_all_ranks_skip_what_is_not_finite_on_one(tiny: Make, tmp_path: Path) -> None:
    config = tiny(steps=3, validate_every=3, fsdp=True, on_nan="skip")
    assert wait(start(2, config, tmp_path / "log", before=_poison_second_rank)) == [0, 0]
    (record,) = _records(config.run_dir, "diverged.jsonl")
    assert record["step"] == 2
    assert len(record["samples"]) == 4, "those of every rank"  # type: ignore[arg-type]


def test_policies_are_checked(tiny: Make) -> None:
    config = tiny()
    with pytest.raises(ConfigError, match="restarts: must be 0 or more"):
        replace(config, train=replace(config.train, restarts=-1))
