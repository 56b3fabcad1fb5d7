"""What a training process holds on a CPU beside its model: Python, the libraries, their code and work areas."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from setr_fast.data.loader import Batch
from setr_fast.errors import BackendError
from setr_fast.models.model import create_model
from setr_fast.train.optimizer import build_optimizer
from setr_fast.train.options import OptimConfig, ParallelConfig, TrainConfig
from setr_fast.train.parallel import spread
from setr_fast.train.ranks import Ranks
from setr_fast.train.step import take_step

STATUS = Path("/proc/self/status")


@functools.cache
def resident_of_a_trainer() -> int:
    """Return the bytes that a process holds once a model of a few thousand weights has taken a step; 0 if unknown.

    A fresh process is started for that: what this one holds besides does not count.

    Raises: BackendError if it fails.
    """
    if not STATUS.exists():
        return 0
    here = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-m", "setr_fast.train.process"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BackendError(f"plan: a process that takes a small step must end well, got {told}")
    return int(done.stdout.splitlines()[-1])


def resident_after_a_small_step() -> int:
    """Take a step with a small model and return the bytes that this process then holds.

    All that training imports and runs is in memory then, so this is measured where the training is to run.
    """
    import setr_fast.train.launch  # noqa: F401  (it loads what a run loads)

    classes, size, ranks = 2, 32, Ranks(0, 1, torch.device("cpu"))
    options: dict[str, Any] = {"width": 32, "depth": 4, "num_heads": 2, "patch_size": 8, "head_channels": 8}
    model = create_model("setr_pup_vit_t16", num_classes=classes, image_size=size, **options)
    config = TrainConfig(precision="fp32")
    loss = spread(model, ranks, config, ParallelConfig(), fsdp=False, bf16=False)
    labels = torch.zeros(2, size, size, dtype=torch.uint8)
    take_step(
        model,
        loss,
        build_optimizer(model, OptimConfig()),
        Batch(torch.zeros(2, 3, size, size), labels, ["", ""]),
        config,
        ranks,
        0,
    )
    return _resident()


def _resident() -> int:
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))


if __name__ == "__main__":
    print(resident_after_a_small_step())
