"""Run by test_peers.py where PaddleSeg is installed: build what configs say, load their weights, write the logits."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import paddle
import yaml
from paddleseg.models import LinearSegmenter, MaskSegmenter, SegmentationTransformer
from paddleseg.models.backbones import VisionTransformer
from paddleseg.utils import utils

KINDS = {kind.__name__: kind for kind in (LinearSegmenter, MaskSegmenter, SegmentationTransformer)}


def main(folder: Path) -> None:
    """Write logits.npz beside the model.yml, model.pdparams and pictures.npz of a folder, all in float64."""
    model = yaml.safe_load((folder / "model.yml").read_text())["model"]
    backbone = {key: value for key, value in model.pop("backbone").items() if key != "type"}
    network = KINDS[model.pop("type")](backbone=VisionTransformer(**backbone), **model)
    state = pickle.loads((folder / "model.pdparams").read_bytes())  # written by the test itself
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    missing, unexpected = network.set_state_dict(
        {key: paddle.to_tensor(value.astype("float64")) for key, value in arrays.items()}
    )
    assert not missing, missing
    assert not unexpected, unexpected
    network.eval()
    with paddle.no_grad(), np.load(folder / "pictures.npz") as pictures:
        logits = {name: network(paddle.to_tensor(pictures[name]))[0].numpy() for name in pictures}
    np.savez(folder / "logits.npz", **logits)


if __name__ == "__main__":
    paddle.set_default_dtype("float64")
    # Without a file of pretrained weights PaddleSeg asks the file system for None.
    VisionTransformer.init_weight = lambda self: None
    utils.load_pretrained_model = utils.load_entire_model = lambda *args, **kwargs: None
    for name in sys.argv[1:]:
        main(Path(name))
