"""One, two and four processes with the same global batch take the same steps; equal runs give equal weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from setr_fast.config import Config
from setr_fast.data.loader import step_keys
from setr_fast.engine.checkpoints import weights_sha256
from setr_fast.nn import chance
from setr_fast.nn.batch_norm import SyncedBatchNorm, synchronise
from setr_fast.train.launch import run
from setr_fast.train.options import ParallelConfig
from tests.train.processes import hosts_of_two, run_ranks

Make = Callable[..., Config]


def losses(folder: Path | None) -> list[float]:
    assert folder is not None
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["train/loss"] for r in records if "train/loss" in r]


def test_one_two_and_four_sharded_ranks_give_the_same_loss_curve(tiny: Make, tmp_path: Path) -> None:
    """Twenty steps of a SETR-PUP with batch norm, dropout, stochastic depth, clipping and averaged weights.

    Four ranks believe that they are on two hosts, and keep weights in shards of a host.
    """

    def config(name: str) -> Config:
        made = tiny(name, steps=20, validate_every=20, batch_size=4, ema=0.9, fsdp=True)
        return replace(made, model=replace(made.model, loss_averaging="valid"))

    one = config("one")
    run(replace(one, fsdp=False), [])
    expected = losses(one.run_dir)
    assert len(set(expected)) == 20
    for world_size in (2, 4):
        several, log = config(f"on{world_size}"), tmp_path / f"log{world_size}"
        if world_size == 4:
            several = replace(several, parallel=ParallelConfig(reshard="host"))
        run_ranks(world_size, several, log, before=hosts_of_two if world_size == 4 else None)
        assert losses(several.run_dir) == pytest.approx(expected, rel=1e-5)
    assert (log / "3").read_text().count("spread over (4,) 2") >= 4, "each block"


def test_replicas_that_work_in_parts_follow_one_process_that_does(tiny: Make, tmp_path: Path) -> None:
    """Accumulated gradients, the mean over all pixels, SGD."""

    def config(name: str) -> Config:
        made = tiny(name, steps=20, validate_every=20, batch_size=4, accumulate=2)
        model = replace(made.model, loss_averaging="all")
        return replace(made, model=model, optim=replace(made.optim, name="sgd", lr=1e-2))

    one, two = config("one"), config("two")
    run(one, [])
    run_ranks(2, two, tmp_path / "log")
    assert losses(two.run_dir) == pytest.approx(losses(one.run_dir), rel=1e-5)


def test_two_equal_runs_give_the_same_weights_to_the_bit(tiny: Make) -> None:
    hashes = []
    for name in ("a", "b"):
        config = tiny(name)
        run(config, [])
        assert config.run_dir is not None
        hashes.append(weights_sha256(config.run_dir / "best"))
    assert hashes[0] == hashes[1]
    other = tiny("c", seed=1)
    run(other, [])
    assert other.run_dir is not None
    assert weights_sha256(other.run_dir / "best") != hashes[0]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_the_samples_of_one(world_size: int) -> None:
    for step in range(7):
        whole = step_keys(step, batch_size=8, count=13, seed=3)
        parts = [
            step_keys(step, batch_size=8, count=13, seed=3, rank=r, world_size=world_size) for r in range(world_size)
        ]
        assert [keys for group in zip(*parts, strict=True) for keys in group] == whole


def test_draws_belong_to_the_sample() -> None:
    """What a sample draws depends neither on its row nor on the other rows; other calls draw other values."""

    def draw(rows: list[int]) -> torch.Tensor:
        torch.manual_seed(5)
        with chance.places(torch.tensor(rows)):
            return torch.stack([chance.keep((len(rows), 3, 50), 0.3, torch.device("cpu")) for _ in range(2)])

    whole = draw([0, 1, 2, 3])
    assert torch.equal(draw([3, 1]), whole[:, [3, 1]])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[:, 0], whole[:, 1])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_dropout_of_places_has_the_rate_and_the_mean_of_ours(rate: float) -> None:
    torch.manual_seed(1)
    x = torch.ones(64, 4000)
    with chance.places(torch.arange(64)):
        y = chance.dropout(x, rate, training=True)
    assert float((y == 0).float().mean()) == pytest.approx(rate, abs=0.005)
    if rate < 1:
        assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - rate)])
    assert chance.dropout(x, rate, training=False) is x


def test_synchronise_keeps_the_tensors_and_the_results_of_one_process() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3)))
    twin = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3)))
    twin.load_state_dict(model.state_dict())
    tensors = dict(model.state_dict(keep_vars=True))
    synchronise(model)
    assert type(model[1][0]) is SyncedBatchNorm
    assert all(tensors[k] is v for k, v in model.state_dict(keep_vars=True).items())
    x = torch.randn(2, 3, 5, 5)
    for mode in (True, False):
        assert torch.equal(model.train(mode)(x), twin.train(mode)(x))
    assert torch.equal(model[1][0].running_var, twin[1][0].running_var)
