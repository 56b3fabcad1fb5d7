"""Whole runs: what they leave, that they learn, that they resume to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import setr_fast
from setr_fast.config import Config, read_config, to_toml
from setr_fast.errors import CheckpointError, ConfigError, DivergedError
from setr_fast.train import checkpoint, loop
from setr_fast.train.launch import run

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Config]


def _state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(folder / "checkpoints" / f"step_{step:08d}")


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_what_the_contract_names(tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(ema=0.9)
    assert run(config, []) == 0
    folder = config.run_dir
    assert folder is not None
    assert {p.name for p in folder.iterdir()} == {
        "config.toml",
        "metrics.jsonl",
        "train.log",
        "checkpoints",
        "best",
        "overlays",
    }
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "mIoU" in last
    assert str(folder / "best") in last
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "val/mIoU" in r] == [3, 6]
    assert all(0 <= r["val/mIoU"] <= 1 for r in records if "val/mIoU" in r)
    assert any(key.startswith("val/IoU/") for key in records[-1])
    pictures = sorted((folder / "overlays").glob("*.png"))
    assert len(pictures) == 2
    assert Image.open(pictures[0]).size[0] >= 3 * 32
    assert read_config(folder / "config.toml", Config()) == replace(config, run_dir=None)
    model = setr_fast.load(folder / "best")
    assert model.spec.class_names
    assert model.spec.palette


def test_utilisation_is_stated_against_the_peak_that_is_given(tiny: Make) -> None:
    config = tiny(steps=2, validate_every=2, peak_tflops=0.001)
    run(config, [])
    assert config.run_dir is not None
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    for record in (r for r in records if "train/loss" in r):
        assert 0 < record["train/data_wait"] < 1
        flops = record["train/mfu"] * 0.001e12 / record["train/images_per_second"]
        assert 1e6 < flops < 1e8, "operations per picture of a model this small"


def test_training_lowers_the_loss(tiny: Make) -> None:
    """Without random changes, so that few steps show it: of seeds 0 to 3 the worst comes to 0.79 (2026-11)."""
    config = tiny(steps=40, validate_every=40)
    config = replace(
        config,
        model=replace(config.model, dropout=0.0, drop_path=0.0),
        augment=replace(config.augment, ratio_range=(1.0, 1.0), photometric=False),
        optim=replace(config.optim, lr=3e-3, warmup_steps=5),
    )
    run(config, [])
    assert config.run_dir is not None
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [r["train/loss"] for r in records if "train/loss" in r]
    assert sum(losses[-10:]) / 10 < 0.88 * sum(losses[:5]) / 5


@pytest.mark.parametrize("fsdp", [False, True], ids=["plain", "fsdp"])
def test_resume_goes_on_to_the_bit_also_with_other_workers(tiny: Make, fsdp: bool) -> None:
    whole = tiny("whole", ema=0.9, fsdp=fsdp)
    run(whole, [])
    half = tiny("half", ema=0.9, fsdp=fsdp, save_every=3)
    assert half.run_dir is not None
    assert whole.run_dir is not None
    run(half, [])
    last = half.run_dir / "checkpoints" / "step_00000006"
    expected = _state(half.run_dir, 6)
    shutil.rmtree(last)  # as if the run had been killed after step 3
    run(replace(half, resume=True, data=replace(half.data, workers=1)), [])
    assert _equal(_state(half.run_dir, 6), expected)
    assert _equal(_state(whole.run_dir, 6), expected)
    steps = [json.loads(line)["step"] for line in (half.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), "records of steps that are done again must not stand twice"


def test_accumulation_changes_memory_not_the_gradient(tiny: Make) -> None:
    """Without batch norm and dropout the parts of a batch add up to the batch."""
    results = []
    for parts in (1, 2):
        config = tiny(f"parts{parts}", steps=2, validate_every=2, accumulate=parts)
        config = replace(
            config,
            model=replace(
                config.model,
                name="segmenter_linear_vit_t16",
                dropout=0.0,
                drop_path=0.0,
                loss_averaging="all",
                head_channels=None,
            ),
        )
        run(config, [])
        assert config.run_dir is not None
        results.append(_state(config.run_dir, 2))
    for key, value in results[0].items():
        if key.startswith("weights/"):
            torch.testing.assert_close(value, results[1][key], rtol=1e-3, atol=2e-5)


def test_a_run_is_not_overwritten(tiny: Make) -> None:
    config = tiny(steps=1, validate_every=1)
    run(config, [])
    with pytest.raises(ConfigError, match="already holds a run"):
        run(config, [])


def test_resume_without_a_checkpoint_says_so(tiny: Make) -> None:
    config = tiny(resume=True)
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        run(config, [])
    assert config.run_dir is not None
    assert not config.run_dir.exists(), "a mistyped folder is not made"


def test_half_written_and_damaged_checkpoints(tiny: Make, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny()
    run(config, [])
    assert config.run_dir is not None
    folder = config.run_dir / "checkpoints"
    (folder / ".writing-step_00000009").mkdir()  # what a kill during a save leaves
    assert [p.name for p in checkpoint.complete(folder)] == ["step_00000003", "step_00000006"]
    shards = [next((p / "shards").glob("*.distcp")) for p in checkpoint.complete(folder)]
    shards[1].write_bytes(shards[1].read_bytes()[:1000])
    assert run(replace(config, resume=True), []) == 0
    assert "step_00000006: shards/__0_0.distcp is damaged" in caplog.text
    assert "passed over for step_00000003" in caplog.text
    assert checkpoint.fault_of(folder / "step_00000006") is None, "it has been written again"
    for shard in shards:
        shard.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other checkpoint is intact") as caught:
        run(replace(config, resume=True), [])
    assert "\n" not in str(caught.value)


def test_what_is_given_on_resume_is_kept_for_the_next_resume(tiny: Make) -> None:
    config = tiny(steps=2, validate_every=2)
    run(config, [])
    longer = replace(config, resume=True, train=replace(config.train, steps=4, validate_every=4))
    run(longer, [])
    assert config.run_dir is not None
    assert read_config(config.run_dir / "config.toml", Config()).train.steps == 4


def test_a_stop_during_the_last_step_still_ends_the_run(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "stop_requests", lambda: nullcontext([signal.SIGINT]))
    config = tiny(steps=1, validate_every=1)
    assert run(config, []) == 0
    assert config.run_dir is not None
    assert (config.run_dir / "best" / "model.safetensors").is_file()


def test_resume_after_the_last_step_scores_and_keeps_the_model(tiny: Make) -> None:
    config = tiny(steps=2, validate_every=2)
    run(config, [])
    assert config.run_dir is not None
    shutil.rmtree(config.run_dir / "best")
    state = config.run_dir / "checkpoints" / "step_00000002" / checkpoint.STATE
    state.write_text(json.dumps(json.loads(state.read_text()) | {"best_miou": -1.0}))
    run(replace(config, resume=True), [])
    assert (config.run_dir / "best" / "model.safetensors").is_file()


def test_only_the_newest_checkpoints_are_kept(tiny: Make) -> None:
    config = tiny(save_every=1, keep=2)
    run(config, [])
    assert config.run_dir is not None
    assert [p.name for p in checkpoint.complete(config.run_dir / "checkpoints")] == ["step_00000005", "step_00000006"]


def test_a_loss_that_is_not_finite_stops_with_the_samples_names(tiny: Make) -> None:
    config = tiny()
    with pytest.raises(DivergedError, match=r"loss is nan on .*; the newest checkpoint is untouched"):
        run(
            replace(
                config, optim=replace(config.optim, lr=1e12, warmup_steps=0), train=replace(config.train, clip_norm=0.0)
            ),
            [],
        )


def test_start_weights_come_from_a_saved_model(tiny: Make) -> None:
    first = tiny("first", steps=2, validate_every=2)
    run(first, [])
    assert first.run_dir is not None
    start = first.run_dir / "best"
    second = replace(tiny("second", steps=1, validate_every=1), model=replace(first.model, start=start))
    second = replace(second, optim=replace(second.optim, lr=1e-12, min_lr=0.0))
    run(second, [])
    assert second.run_dir is not None
    before, after = load_file(start / "model.safetensors"), load_file(second.run_dir / "best" / "model.safetensors")
    weights = [k for k in before if "running" not in k and "num_batches" not in k]
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in weights)
    wrong = replace(tiny("third"), model=replace(first.model, start=start, width=48))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        run(wrong, [])


def test_ctrl_c_saves_and_says_how_to_go_on(tiny: Make, tmp_path: Path) -> None:
    config = tiny(steps=2000, validate_every=2000)
    file = tmp_path / "c.toml"
    file.write_text(to_toml(replace(config, run_dir=None)))
    argv = [sys.executable, "-m", "setr_fast.train", "--config", str(file), "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        argv, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "--resume" in error.strip().splitlines()[-1]
    saved = checkpoint.complete(tmp_path / "run" / "checkpoints")
    assert len(saved) == 1
    assert checkpoint.read_progress(saved[0]).step >= 2
