"""Runs in which the encoder keeps its weights: frozen, or with low-rank adapters, in one process and sharded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import setr_fast
from setr_fast.config import Config
from setr_fast.models.model import create_model
from setr_fast.train.checkpoint import read_tensors
from setr_fast.train.launch import run
from tests.train.processes import run_ranks


def _with(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def _start(tmp_path: Path, config: Config) -> Path:
    """Save a model whose weights both runs start from, so that what has not changed is known."""
    model = create_model(
        config.model.name, num_classes=8, image_size=32, **dataclasses.replace(config.model, start=None).overrides()
    )
    model.save(tmp_path / "start")
    return tmp_path / "start"


def _losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["train/loss"] for record in records if "train/loss" in record]


@pytest.mark.parametrize("how", ["frozen", "adapters"])
def test_the_encoder_keeps_its_weights(how: str, tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny(steps=2, validate_every=2, overlays=0)
    start = _start(tmp_path, config)
    changes = {"freeze_encoder": True} if how == "frozen" else {"lora_rank": 2}
    assert run(_with(config, start=start, **changes), []) == 0
    before = setr_fast.load(start).state_dict()
    after = setr_fast.load(tmp_path / "run" / "best").state_dict()
    for name, tensor in before.items():
        same = torch.equal(tensor, after[name])
        if name.startswith("encoder."):
            assert same, name
    assert not torch.equal(before["head.classifier.weight"], after["head.classifier.weight"])
    adapters = [tensor for name, tensor in after.items() if name.endswith("lora_b")]
    assert len(adapters) == (8 if how == "adapters" else 0)
    assert all(tensor.abs().max() > 0 for tensor in adapters)


@pytest.mark.parametrize("how", ["frozen", "adapters"])
def test_two_sharded_processes_follow_one_and_resume_to_the_bit(
    how: str, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    changes = {"freeze_encoder": True} if how == "frozen" else {"lora_rank": 2}
    run_length = {"steps": 4, "validate_every": 2, "save_every": 2, "overlays": 0}
    one, two = (_with(tiny(name, fsdp=name == "two", **run_length), **changes) for name in ("one", "two"))
    assert one.optim.name == "adamw"
    assert run(one, []) == 0
    run_ranks(2, two, tmp_path / "log")
    assert len(_losses(tmp_path / "one")) == 4
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=1e-5)
    last = tmp_path / "two" / "checkpoints" / "step_00000004"
    expected = read_tensors(last)
    learned = {name for name in expected if name.startswith("optimizer/")}
    assert len(learned) > 0
    assert not [name for name in learned if "/encoder." in name and ".lora_" not in name], "frozen ones have no state"
    if how == "frozen":  # one of the two shows that resuming leaves nothing out
        return
    shutil.rmtree(last)
    run_ranks(2, dataclasses.replace(two, resume=True), tmp_path / "log")
    again = read_tensors(last)
    assert expected.keys() == again.keys()
    assert [name for name in expected if not torch.equal(expected[name], again[name])] == []
