"""Run by test_peer_sequences.py: official SETR trains, with its own model, mmcv's runner, optimiser and schedule.

Arguments: a checkout of SETR, then folders with ``model.pth``, ``model.py``, ``batches.npz`` (image
[steps, B, 3, H, W], label [steps, B, H, W]) and ``options.json`` (config: name of the published one). Each gets
``trained.json``: the loss of every step, and its lowest and highest learning rate.
"""

from __future__ import annotations

import collections.abc
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

# What SETR and mmcv 1.2.7 import and these models do not use, and what mmcv knows of old torch.
UNUSED = ("torchvision", "torchvision.models", "mmcv.ops", "mmseg.models.decode_heads.hlg_utils")
UNUSED += ("timm", "timm.models", "timm.models.layers", "timm.models.registry", "timm.models.vision_transformer")
for name in UNUSED:
    sys.modules[name] = MagicMock(__path__=[])
six: Any = types.ModuleType("torch._six")
six.container_abcs, six.string_classes, six.int_classes, six.inf = collections.abc, str, int, float("inf")
sys.modules["torch._six"] = six
torch.nn.SyncBatchNorm._specify_ddp_gpu_num = lambda self, number: None


def train(repository: Path, folder: Path) -> dict[str, list[Any]]:
    """Return the losses and learning rates of a run over the folder's batches."""
    import mmcv.runner
    from mmcv import Config
    from mmseg.models import build_segmentor

    named = json.loads((folder / "options.json").read_text())["config"]
    published = Config.fromfile(str(repository / "configs" / "SETR" / f"{named}.py"))
    config = Config.fromfile(str(folder / "model.py"))
    model = build_segmentor(config.model, train_cfg=config.get("train_cfg"), test_cfg=config.test_cfg)
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True)["state_dict"], strict=True)
    model = model.double().train()
    with np.load(folder / "batches.npz") as read:
        images, labels = torch.from_numpy(read["image"]), torch.from_numpy(read["label"])[:, :, None]
    loader = [
        {"img": image, "img_metas": [{}] * len(image), "gt_semantic_seg": label}
        for image, label in zip(images, labels, strict=True)
    ]
    losses, rates = [], []
    step = model.train_step

    def noted(batch: Any, optimizer: Any, **rest: Any) -> Any:
        values = [group["lr"] for group in optimizer.param_groups]
        out = step(batch, optimizer, **rest)
        losses.append(out["loss"].item())
        rates.append([min(values), max(values)])
        return out

    model.train_step = noted
    optimizer = mmcv.runner.build_optimizer(model, published.optimizer)
    logger = logging.getLogger("mmcv")
    runner = mmcv.runner.IterBasedRunner(model, optimizer=optimizer, work_dir=str(folder), logger=logger)
    runner._max_iters = len(loader)
    runner.register_lr_hook(published.lr_config)
    runner.register_optimizer_hook(published.optimizer_config)
    runner.run([loader], [("train", 1)], len(loader))
    return {"losses": losses, "rates": rates}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    for place in map(Path, sys.argv[2:]):
        (place / "trained.json").write_text(json.dumps(train(Path(sys.argv[1]), place)))
