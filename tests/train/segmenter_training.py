"""Run by test_peer_sequences.py: official Segmenter trains, with its own model, optimiser, schedule and loop.

Arguments: a checkout of Segmenter, then folders with ``checkpoint.pth``, ``variant.yml``, ``batches.npz`` (image
[steps, B, 3, H, W], label [steps, B, H, W]) and ``options.json`` (lr, min_lr). Each gets ``trained.json``: the loss of
every step, and its learning rate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

# Only for pictures, other models and GPUs: nothing of them is used in a step.
PARTS = ("", ".transforms", ".datasets", ".ops", ".ops.misc", ".models", ".utils", ".core", ".datasets.pipelines")
for name in (package + part for package in ("torchvision", "mmcv", "mmseg") for part in PARTS):
    sys.modules[name] = MagicMock(__path__=[])
sys.modules["torchvision.transforms.functional"] = sys.modules["torchvision.models.feature_extraction"] = MagicMock()
torch.cuda.synchronize = lambda device=None: None


class Batches(list[dict[str, torch.Tensor]]):
    """What the loop asks of a loader."""

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order is given."""


class Notes:
    """What the loop asks of a logger; keeps what it is told."""

    def __init__(self, delimiter: str = "") -> None:
        self.told: list[dict[str, float]] = NOTED
        self.meters: dict[str, Any] = {}

    def log_every(self, loader: Batches, often: int, header: str) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the batches."""
        yield from loader

    def update(self, **values: float) -> None:
        """Keep the loss of a step, and the learning rate of the next one."""
        self.told.append(values)


NOTED: list[dict[str, float]] = []


def main(repository: str, folders: list[Path]) -> None:
    """Train in every folder."""
    sys.path.insert(0, repository)
    import segm.engine as engine
    import segm.optim.factory as optim
    import segm.utils.torch as ptu
    from segm.model.factory import load_model

    ptu.device = torch.device("cpu")
    engine.MetricLogger = Notes
    for folder in folders:
        NOTED.clear()
        with np.load(folder / "batches.npz") as read:
            images, labels = torch.from_numpy(read["image"]), torch.from_numpy(read["label"])
        options = json.loads((folder / "options.json").read_text())
        model = load_model(str(folder / "checkpoint.pth"))[0].double()
        settings = argparse.Namespace(
            opt="sgd", momentum=0.9, weight_decay=0.0, clip_grad=None, sched="polynomial", poly_power=0.9,
            poly_step_size=1, iter_max=len(images), iter_warmup=0.0, epochs=1, **options,
        )  # fmt: skip
        optimizer = optim.create_optimizer(settings, model)
        schedule = optim.create_scheduler(settings, optimizer)
        first = optimizer.param_groups[0]["lr"]
        batches = Batches({"im": image, "segmentation": label} for image, label in zip(images, labels, strict=True))
        engine.train_one_epoch(model, batches, optimizer, schedule, 0, nullcontext, None)
        rates = [first, *(note["learning_rate"] for note in NOTED[:-1])]
        trained = {"losses": [note["loss"] for note in NOTED], "rates": rates}
        (folder / "trained.json").write_text(json.dumps(trained))


if __name__ == "__main__":
    main(sys.argv[1], [Path(name) for name in sys.argv[2:]])
