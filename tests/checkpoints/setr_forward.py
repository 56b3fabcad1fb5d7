"""Run by test_peers_official.py: official SETR builds, loads, saves and runs its own models.

Arguments: a checkout of SETR, then folders. A folder with ``model.pth`` and ``model.py`` is loaded; one with
``model.py`` alone gets a random model, saved as mmcv saves it. The pictures in ``pictures.npz`` become ``logits.npz``:
the main head's at the picture's size, then every auxiliary head's, in float64.
"""

from __future__ import annotations

import collections.abc
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

# What SETR and mmcv 1.2.7 import and these models do not use: mmcv's compiled operations, torchvision's list of
# weights, and HLG, another architecture of the repository, two files of which were never published.
UNUSED = ("torchvision", "torchvision.models", "mmcv.ops", "mmseg.models.decode_heads.hlg_utils")
UNUSED += ("timm", "timm.models", "timm.models.layers", "timm.models.registry", "timm.models.vision_transformer")


def prepare() -> None:
    """Stand in for what is unused, and for what mmcv knows of old torch: torch._six, a setting of SyncBatchNorm."""
    for name in UNUSED:
        sys.modules[name] = MagicMock(__path__=[])
    six: Any = types.ModuleType("torch._six")
    six.container_abcs, six.string_classes, six.int_classes = collections.abc, str, int
    sys.modules["torch._six"] = six
    torch.nn.SyncBatchNorm._specify_ddp_gpu_num = lambda self, number: None


def save(model: Any, config: Any, path: Path) -> None:
    """Save a random model as mmseg's checkpoint hook does: config, classes and palette in ``meta``."""
    import mmcv.runner

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1 if "running_var" in name else torch.randn_like(tensor))
    classes = [f"class {i}" for i in range(config.model.decode_head.num_classes)]
    meta = {"mmseg_version": "0.7.0", "config": config.pretty_text, "CLASSES": classes}
    meta["PALETTE"] = [[i, i, i] for i in range(len(classes))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    mmcv.runner.save_checkpoint(model, str(path), optimizer=optimizer, meta=meta)


def main(repository: str, folders: list[Path]) -> None:
    """Write logits.npz into every folder."""
    prepare()
    sys.path.insert(0, repository)
    from mmcv import Config
    from mmseg.models import build_segmentor

    for folder in folders:
        config = Config.fromfile(str(folder / "model.py"))
        model = build_segmentor(config.model, train_cfg=config.get("train_cfg"), test_cfg=config.test_cfg)
        if not (folder / "model.pth").exists():
            save(model, config, folder / "model.pth")
        model.load_state_dict(torch.load(folder / "model.pth", weights_only=True)["state_dict"], strict=True)
        model = model.double().eval()
        logits = {}
        with torch.no_grad(), np.load(folder / "pictures.npz") as pictures:
            for name in pictures:
                picture = torch.from_numpy(pictures[name])
                features = model.extract_feat(picture)
                heads = [head.forward_test(features, [{}], None) for head in model.auxiliary_head]
                found = [model.encode_decode(picture, [{}]), *heads]
                logits |= {f"{name}_{index}": entry.numpy() for index, entry in enumerate(found)}
        np.savez(folder / "logits.npz", **logits)


if __name__ == "__main__":
    main(sys.argv[1], [Path(name) for name in sys.argv[2:]])
