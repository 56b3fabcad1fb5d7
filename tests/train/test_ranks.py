"""Several processes on the CPU over gloo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from setr_fast.config import Config, to_toml
from setr_fast.train import checkpoint
from setr_fast.train.launch import run
from tests.train.processes import run_ranks

ROOT = Path(__file__).resolve().parents[2]


def _losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["train/loss"] for r in records if "train/loss" in r]


def _torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "setr_fast.train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=180, env=environment
    )


def _config(tiny: Callable[..., Config], name: str, *, fsdp: bool = False) -> Config:
    """Return a short run of Segmenter, which draws in encoder and decoder."""
    config = tiny(name, steps=4, validate_every=4, save_every=2, fsdp=fsdp)
    return replace(config, model=replace(config.model, name="segmenter_mask_vit_t16", head_channels=None))


def test_two_ranks_follow_one_rank_under_torchrun_and_as_replicas(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Two ranks with half the batch each take the steps that one rank takes, sharded or not."""
    config, replicas = _config(tiny, "one"), _config(tiny, "replicas")
    run(config, [])
    file = tmp_path / "c.toml"
    file.write_text(to_toml(replace(config, run_dir=None)))
    done = _torchrun("--config", str(file), "--run-dir", str(tmp_path / "two"), "--fsdp")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checkpoint") == 1, "one rank speaks"
    run_ranks(2, replicas, tmp_path / "log")
    assert config.run_dir is not None
    assert replicas.run_dir is not None
    one = _losses(config.run_dir)
    assert len(one) == 4
    assert _losses(tmp_path / "two") == pytest.approx(one, rel=1e-5)
    assert _losses(replicas.run_dir) == pytest.approx(one, rel=1e-5)


@pytest.mark.slow  # of ranks that were not started by torchrun, test_resume.py shows it by default
def test_two_ranks_resume_to_the_bit_batch_statistics_included(tiny: Callable[..., Config], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(to_toml(replace(tiny(steps=4, validate_every=2, save_every=2), run_dir=None)))
    folder = tmp_path / "run"
    assert _torchrun("--config", str(file), "--run-dir", str(folder), "--fsdp").returncode == 0
    last = folder / "checkpoints" / "step_00000004"
    expected = checkpoint.read_tensors(last)
    shutil.rmtree(last)
    assert _torchrun("--run-dir", str(folder), "--resume").returncode == 0
    again = checkpoint.read_tensors(last)
    assert expected.keys() == again.keys()
    assert [k for k in expected if not torch.equal(expected[k], again[k])] == []


def test_a_failure_in_several_processes_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "data" / "train" / kind).mkdir(parents=True)
    argv = ["--data.root", str(tmp_path / "data"), "--run-dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "setr_fast.train", *argv, "--nproc", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 3, done.stderr
    assert done.stderr.strip().count("\n") == 0
    under = _torchrun(
        *argv
    )  # torchrun has an exit code of its own; the line must be there once, without a traceback of ours
    assert under.stderr.count("setr-fast train:") == 1
    assert "gloo" not in under.stderr
