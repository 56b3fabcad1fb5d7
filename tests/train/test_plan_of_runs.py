"""A plan for a CPU against the most memory that a run held: steps, validation, checkpoints, in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from setr_fast.data.scenes.builtin import CLASSES
from setr_fast.models.catalog import model_spec
from setr_fast.train.devices import GIB, Device
from setr_fast.train.options import TrainConfig
from setr_fast.train.plan import Layout, make_plan

ROOT = Path(__file__).resolve().parents[2]
RUNS = [
    ("setr_pup_vit_s16", 4, {}, "adamw"),
    ("setr_naive_vit_s16", 4, {}, "sgd"),
    ("segmenter_mask_vit_s16", 4, {}, "adamw"),
    ("segmenter_mask_vit_t16", 8, {"recompute": "full"}, "adamw"),
    ("segmenter_mask_vit_t16", 8, {"accumulate": 2}, "sgd"),
    ("segmenter_linear_vit_t16", 8, {"accumulate": 2}, "sgd"),
    ("setr_mla_vit_t16", 8, {"ema": 0.99}, "adamw"),
    ("setr_pup_vit_t16", 8, {"ema": 0.99, "recompute": "selective"}, "adamw"),
    ("setr_naive_vit_t16", 8, {"recompute": "selective"}, "adamw"),
]
SIDE = 256
CPU = Device("cpu", 16 * GIB, 1e11, 1e11, 1e10, 1e10)
ALONE = Layout(batch=4, gpus=1, shards=1, per_host=8, always=False, bf16=False, averaged=False)
MOST = (  # a small process between: until it has become another program, a child counts what its parent holds
    "import resource, subprocess, sys\n"
    "code = subprocess.call(sys.argv[1:], stdout=sys.stderr)\n"
    "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="plans count a process by Linux's /proc")
@pytest.mark.parametrize(
    ("name", "batch", "options", "optimizer"),
    [("setr_pup_vit_t16", 4, {}, "sgd"), *(pytest.param(*run, marks=pytest.mark.slow) for run in RUNS)],
)
def test_a_run_holds_what_was_planned(
    tmp_path: Path, name: str, batch: int, options: dict[str, object], optimizer: str
) -> None:
    """Within a tenth. The small one takes two steps: the optimiser's state is there in the second."""
    steps = 2 if "_t16" in name and not options else 3
    asked = {
        "model.name": name,
        "train.steps": steps,
        "train.save-every": 1,
        "train.validate-every": steps,
        "train.batch-size": batch,
        "train.precision": "fp32",
        "train.overlays": 1,
        "data.builtin-train": batch,
        "data.builtin-val": 1,
        "data.builtin-size": SIDE,
        "optim.name": optimizer,
        **{f"train.{key}": value for key, value in options.items()},
    }
    arguments = [text for key, value in asked.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "setr_fast.train", "--run-dir", str(tmp_path / "run"), *arguments]
    command += ["--augment.crop", str(SIDE), str(SIDE)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        between = [sys.executable, "-c", MOST, *command]
        done = subprocess.run(between, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=ROOT, check=False)
    code, held = map(int, done.stdout.split()[-2:])
    assert code == 0, (tmp_path / "log").read_text()[-2000:]
    config = TrainConfig(precision="fp32", **options)  # type: ignore[arg-type]
    layout = replace(ALONE, batch=batch, averaged=config.ema > 0, adam=optimizer == "adamw")
    planned = make_plan(model_spec(name, len(CLASSES), SIDE), config, layout, CPU)
    assert planned.bytes == pytest.approx(held * 1024, rel=0.10), planned.parts
