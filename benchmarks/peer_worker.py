"""Run by peer_process.py in an interpreter that has another code base: builds its network, times forwards on command.

Arguments: paddleseg, or segmenter or setr and a checkout of it. One JSON object per line comes in and one goes out:
``{"load": FOLDER}`` (what ours exported for the code base lies there), ``{"run": PICTURE.npy, "to": LOGITS.npy}``. Only
the forward itself is on the clock.
"""

from __future__ import annotations

import collections.abc
import contextlib
import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

REPLIES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever the code base prints is no reply
del sys.path[0]  # this folder, whose modules are not those that the code base looks for

import numpy as np  # noqa: E402

SPINS = 0.25
"""Seconds that threads may wait for work by turning round and round; a reply comes when they have gone to sleep."""
Forward = Callable[[np.ndarray], tuple[np.ndarray, float]]
# timm augments pictures with torchvision; nothing here does.
TORCHVISION = ("", ".transforms", ".transforms.functional", ".datasets", ".datasets.folder", ".ops", ".ops.misc")
# What SETR and mmcv 1.2.7 import and these models do not use: mmcv's compiled operations, torchvision's list of
# weights, and HLG, another architecture of the repository, two files of which were never published.
UNUSED = ("torchvision", "torchvision.models", "mmcv.ops", "mmseg.models.decode_heads.hlg_utils")
UNUSED += ("timm", "timm.models", "timm.models.layers", "timm.models.registry", "timm.models.vision_transformer")


def paddleseg(folder: Path) -> Forward:
    """Return the network that model.yml describes with the tensors of model.pdparams, which the caller wrote."""
    import paddle
    import yaml
    from paddleseg.models import LinearSegmenter, MaskSegmenter, SegmentationTransformer
    from paddleseg.models.backbones import VisionTransformer
    from paddleseg.utils import utils

    # Without a file of pretrained weights PaddleSeg asks the file system for None.
    VisionTransformer.init_weight = lambda self: None
    utils.load_pretrained_model = utils.load_entire_model = lambda *args, **kwargs: None
    kinds = {kind.__name__: kind for kind in (LinearSegmenter, MaskSegmenter, SegmentationTransformer)}
    model = yaml.safe_load((folder / "model.yml").read_text())["model"]
    backbone = {key: value for key, value in model.pop("backbone").items() if key != "type"}
    network = kinds[model.pop("type")](backbone=VisionTransformer(**backbone), **model)
    state = pickle.loads((folder / "model.pdparams").read_bytes())
    arrays = {key: paddle.to_tensor(value) for key, value in state.items() if isinstance(value, np.ndarray)}
    missing, unexpected = network.set_state_dict(arrays)
    if missing or unexpected:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    network.eval()

    def forward(picture: np.ndarray) -> tuple[np.ndarray, float]:
        given = paddle.to_tensor(picture)
        with paddle.no_grad():
            started = time.perf_counter()
            logits = network(given)[0]
            seconds = time.perf_counter() - started
        return logits.numpy(), seconds

    return forward


def segmenter(folder: Path) -> Forward:
    """Return official Segmenter's network of checkpoint.pth and variant.yml."""
    for part in (*TORCHVISION, ".models", ".models.feature_extraction"):
        sys.modules["torchvision" + part] = MagicMock(__path__=[])
    import segm.model.factory as factory
    import segm.utils.torch as ptu
    import torch

    ptu.device = torch.device("cpu")
    model, _ = factory.load_model(str(folder / "checkpoint.pth"))  # strict
    return _of_torch(model.eval())


def setr(folder: Path) -> Forward:
    """Return official SETR's network of model.pth and model.py: the main head, as its own inference calls it."""
    import torch

    for name in UNUSED:
        sys.modules[name] = MagicMock(__path__=[])
    six: Any = types.ModuleType("torch._six")  # mmcv 1.2.7 knows old torch
    six.container_abcs, six.string_classes, six.int_classes = collections.abc, str, int
    sys.modules["torch._six"] = six
    torch.nn.SyncBatchNorm._specify_ddp_gpu_num = lambda self, number: None
    from mmcv import Config
    from mmseg.models import build_segmentor

    config = Config.fromfile(str(folder / "model.py"))
    model = build_segmentor(config.model, train_cfg=config.get("train_cfg"), test_cfg=config.test_cfg)
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True)["state_dict"], strict=True)
    model.eval()
    return _of_torch(lambda picture: model.encode_decode(picture, [{}]))


def _of_torch(run: Callable[[Any], Any]) -> Forward:
    import torch

    def forward(picture: np.ndarray) -> tuple[np.ndarray, float]:
        given = torch.from_numpy(picture)
        with torch.inference_mode():
            started = time.perf_counter()
            logits = run(given)
            seconds = time.perf_counter() - started
        return logits.numpy(), seconds

    return forward


KINDS = {"paddleseg": paddleseg, "segmenter": segmenter, "setr": setr}


def versions(kind: str, repository: str) -> dict[str, str]:
    """Return the releases that ran, and the commit of a checkout that has its history."""
    names = {"paddleseg": ("paddlepaddle", "paddleseg"), "segmenter": ("timm",), "setr": ("mmcv",)}[kind]
    found = {name: importlib.metadata.version(name) for name in names}
    if repository and (Path(repository) / ".git").exists():
        asked = ["git", "-C", repository, "rev-parse", "--short", "HEAD"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            found[kind] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return found


def main(kind: str, repository: str = "") -> None:
    """Answer until the pipe is closed."""
    if repository:
        sys.path.insert(0, repository)
    forward: Forward | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if "load" in asked:
                forward = KINDS[kind](Path(asked["load"]))
                reply = versions(kind, repository)
            else:
                assert forward is not None, "nothing is loaded"
                logits, seconds = forward(np.load(asked["run"]))
                np.save(asked["to"], logits)
                reply = {"seconds": seconds}
                time.sleep(SPINS)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=REPLIES, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
