"""Runs in which the encoder keeps its weights: frozen, or with low-rank adapters, in one process and sharded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import setr_fast
from setr_fast.config import Config
from setr_fast.models.model import create_model
from setr_fast.train.launch import run
from setr_fast.train.options import OptimConfig
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


def test_adapters_learn_the_same_sharded_over_two_processes(tiny: Callable[..., Config], tmp_path: Path) -> None:
    changes = {"lora_rank": 2, "dropout": 0.0, "drop_path": 0.0}
    sgd = OptimConfig(name="sgd", lr=0.1, warmup_steps=0)  # AdamW would make rounding noise as large as a gradient
    one, two = (
        dataclasses.replace(
            _with(tiny(name, steps=3, validate_every=3, overlays=0, fsdp=name == "two"), **changes), optim=sgd
        )
        for name in ("one", "two")
    )
    assert run(one, []) == 0
    run_ranks(2, two, tmp_path / "log")
    want = setr_fast.load(tmp_path / "one" / "best").state_dict()
    got = setr_fast.load(tmp_path / "two" / "best").state_dict()
    assert all(tensor.abs().max() > 1e-4 for name, tensor in want.items() if name.endswith("lora_b"))
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
