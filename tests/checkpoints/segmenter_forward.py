"""Run by test_peers_official.py: official Segmenter builds, loads, saves and runs its own models.

Arguments: a checkout of Segmenter, then folders. A folder with ``checkpoint.pth`` and ``variant.yml`` is loaded; one
with ``build.json`` alone gets a random model, saved as Segmenter's training saves it. The pictures in ``pictures.npz``
become ``logits.npz``, in float64.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

# timm augments pictures with torchvision; nothing here does.
_PARTS = ("", ".transforms", ".transforms.functional", ".datasets", ".datasets.folder", ".ops", ".ops.misc")
for part in (*_PARTS, ".models", ".models.feature_extraction"):
    sys.modules["torchvision" + part] = MagicMock(__path__=[])


def build(factory: Any, folder: Path) -> None:
    """Save a random model and its variant.yml as segm/train.py does."""
    import yaml

    net = json.loads((folder / "build.json").read_text())
    net["image_size"] = tuple(net["image_size"])
    model = factory.create_segmenter(net)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "n_cls": model.n_cls}
    torch.save(saved | {"lr_scheduler": scheduler.state_dict(), "epoch": 63}, folder / "checkpoint.pth")
    side = net["image_size"][0]
    variant = {
        "version": "normal",
        "dataset_kwargs": {"dataset": "ade20k", "crop_size": side, "normalization": net["normalization"]},
        "net_kwargs": net,
        "inference_kwargs": {"im_size": side, "window_size": side, "window_stride": side},
    }
    (folder / "variant.yml").write_text(yaml.dump(variant))


def main(repository: str, folders: list[Path]) -> None:
    """Write logits.npz into every folder."""
    sys.path.insert(0, repository)
    import segm.model.factory as factory
    import segm.utils.torch as ptu

    ptu.device = torch.device("cpu")
    for folder in folders:
        if not (folder / "checkpoint.pth").exists():
            build(factory, folder)
        model, _ = factory.load_model(str(folder / "checkpoint.pth"))  # strict
        model = model.double().eval()
        with torch.no_grad(), np.load(folder / "pictures.npz") as pictures:
            logits = {name: model(torch.from_numpy(pictures[name])).numpy() for name in pictures}
        np.savez(folder / "logits.npz", **logits)


if __name__ == "__main__":
    main(sys.argv[1], [Path(name) for name in sys.argv[2:]])
