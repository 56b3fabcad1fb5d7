"""Run by paddle_process.py in the interpreter that has PaddleSeg: builds what configs say, times forwards on command.

One JSON object per line comes in and one goes out: ``{"load": FOLDER}`` (model.yml and model.pdparams there),
``{"run": PICTURE.npy, "to": LOGITS.npy}``. Only the forward itself is on the clock.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

REPLIES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever Paddle prints is no reply
del sys.path[0]  # this folder, whose modules are not those that Paddle looks for

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import yaml  # noqa: E402
from paddleseg.models import LinearSegmenter, MaskSegmenter, SegmentationTransformer  # noqa: E402
from paddleseg.models.backbones import VisionTransformer  # noqa: E402
from paddleseg.utils import utils  # noqa: E402

KINDS = {kind.__name__: kind for kind in (LinearSegmenter, MaskSegmenter, SegmentationTransformer)}
SPINS = 0.25
"""Seconds that threads may wait for work by turning round and round; a reply comes when they have gone to sleep."""


def load(folder: Path) -> Any:
    """Return the network that model.yml describes with the tensors of model.pdparams, which the caller wrote."""
    model = yaml.safe_load((folder / "model.yml").read_text())["model"]
    backbone = {key: value for key, value in model.pop("backbone").items() if key != "type"}
    network = KINDS[model.pop("type")](backbone=VisionTransformer(**backbone), **model)
    state = pickle.loads((folder / "model.pdparams").read_bytes())
    arrays = {key: paddle.to_tensor(value) for key, value in state.items() if isinstance(value, np.ndarray)}
    missing, unexpected = network.set_state_dict(arrays)
    if missing or unexpected:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    network.eval()
    return network


def run(network: Any, source: str, target: str) -> float:
    """Return the seconds of one forward of the picture in ``source``; its logits go to ``target``."""
    picture = paddle.to_tensor(np.load(source))
    with paddle.no_grad():
        started = time.perf_counter()
        logits = network(picture)[0]
        seconds = time.perf_counter() - started
    np.save(target, logits.numpy())
    return seconds


def main() -> None:
    """Answer until the pipe is closed."""
    # Without a file of pretrained weights PaddleSeg asks the file system for None.
    VisionTransformer.init_weight = lambda self: None
    utils.load_pretrained_model = utils.load_entire_model = lambda *args, **kwargs: None
    network = None
    for line in sys.stdin:
        asked = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if "load" in asked:
                network = load(Path(asked["load"]))
                reply = {name: importlib.metadata.version(name) for name in ("paddlepaddle", "paddleseg")}
            else:
                reply = {"seconds": run(network, asked["run"], asked["to"])}
                time.sleep(SPINS)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=REPLIES, flush=True)


if __name__ == "__main__":
    main()
