"""A run on shards: stopped anywhere, it goes on to the bit, also with worker processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from setr_fast.cli import main
from setr_fast.config import Config, read_config
from setr_fast.data.options import DataConfig
from setr_fast.data.shards.write import write_shards
from setr_fast.train import checkpoint
from setr_fast.train.launch import run
from tests.data.test_shards import make_folder

Make = Callable[..., Config]


def test_a_run_on_shards_goes_on_to_the_bit(tiny: Make, tmp_path: Path) -> None:
    list(write_shards(DataConfig(root=make_folder(tmp_path / "folder", 10)), tmp_path / "shards", (), 12_000))
    assert len(list((tmp_path / "shards").glob("train-*.tar"))) > 3
    config = tiny(steps=6, validate_every=6, save_every=4)
    config = replace(config, data=replace(config.data, shards=str(tmp_path / "shards"), shard_mix=2))
    run(config, [])
    assert config.run_dir is not None
    folder = config.run_dir / "checkpoints"
    whole = checkpoint.read_tensors(folder / "step_00000006")
    kept = read_config(config.run_dir / "config.toml", Config()).data
    assert kept.shards == str(tmp_path / "shards")
    shutil.rmtree(folder / "step_00000006")
    run(replace(config, resume=True, data=replace(config.data, workers=1)), [])
    again = checkpoint.read_tensors(folder / "step_00000006")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[key], whole[key]) for key in whole)
    out = tmp_path / "result.json"
    assert main(["eval", "--checkpoint", str(config.run_dir), "--split", "val", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["images"] == 3
