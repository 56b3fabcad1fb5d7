"""Sliding windows, scales and mirroring against what the published code bases recorded.

Through the engine's public entry points. The normalised inputs are the peers' own, so that only windows, averaging,
resizing and merging are compared. Logits are held to 1e-4, probabilities to 1e-5; classes must agree wherever the two
best of the peer differ by more than rounding, and how many pixels that leaves out is asserted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.pictures import reader
from setr_fast.engine.predictor import predict, predict_scores, predict_views
from setr_fast.engine.views import View
from setr_fast.models.model import SegmentationModel
from setr_fast.models.store import fill_model
from tests.models import fixture_maps, fixture_specs

WINDOW, STRIDE = (64, 64), (42, 42)
# What the two fixtures' config.json leaves out, in the words of the same families' model fixtures.
PADDLESEG: dict[str, Any] = {
    "backbone": {"img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 3, "epsilon": 1e-5},
    "model": {"h_embed_dim": 48, "h_num_heads": 3, "h_qkv_bias": False},
}
PADDLEVIT: dict[str, Any] = {
    "model": {
        "MODEL": {"TRANS": {"HIDDEN_SIZE": 48, "NUM_LAYERS": 4, "NUM_HEADS": 3}},
        "DATA": {"CROP_SIZE": [64, 64]},
    },
}
NO_TABLE = torch.zeros(3, 256)
SLIDE = InferenceConfig(mode="slide", window_rule="mmseg", merge="probabilities", window_batch=3)


class Peer:
    """A recorded model and its arrays; ``missing`` says what its config.json leaves out, ``changes`` of the spec."""

    def __init__(self, folder: Path, num_classes: int, changes: dict[str, Any] | None = None, **missing: Any) -> None:
        config = json.loads((folder / "config.json").read_text()) | missing
        values = {"num_classes": num_classes, "image_size": WINDOW, "stride": STRIDE} | (changes or {})
        spec = fixture_specs.spec_of(config).replace(**values)
        with torch.device("meta"):
            wanted = SegmentationModel(spec).state_dict()
        source = fixture_maps.read_weights(folder / config["weights"])
        self.model = fill_model(spec, fixture_maps.convert(config, source, wanted), where=folder.name)
        with np.load(folder / "data.npz") as data:
            self.arrays = {name: torch.from_numpy(data[name].copy()) for name in data.files}

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def views(self) -> list[View]:
        """The augmented inputs; every second one is mirrored, and handed over so."""
        count = sum(name.startswith("aug") and name.endswith("_input") for name in self.arrays)
        return [view_of(self[f"aug{index}_input"][0], bool(index % 2)) for index in range(count)]


def view_of(image: Tensor, mirrored: bool = False) -> View:
    size = (image.shape[1], image.shape[2])
    return View(reader(image, size, False, NO_TABLE, as_bytes=False), size, mirrored, WINDOW, STRIDE)


def assert_close(found: np.ndarray | None, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert found is not None
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=tolerance)


def assert_classes(found: np.ndarray, best: Tensor, scores: Tensor, ties: int = 0) -> None:
    """Equal but for ``ties`` pixels at most, whose two best scores differ by no more than rounding may change."""
    best = best.reshape(found.shape)
    different = torch.from_numpy(found.astype(np.int64)) != best.long()
    first, second = scores.reshape(-1, *found.shape).topk(2, dim=0).values
    assert int(different.sum()) <= ties
    assert bool((first - second)[different].abs().le(2e-5).all())


def test_official_setr_slides_and_merges_the_same(shared):
    peer = Peer(shared / "fixtures/parity/setr-official-slide-msflip", 6)
    size, image = (110, 86), peer["input"][0]
    assert_close(predict_scores(peer.model, image, SLIDE), peer["slide_logits"][0])
    assert_close(predict_scores(peer.model, image, SLIDE, out_size=size), peer["slide_ori_logits"][0])
    assert_classes(predict(peer.model, image, SLIDE, out_size=size), peer["slide_argmax"], peer["slide_prob"])
    views = peer.views()
    assert_close(predict_scores(peer.model, views, SLIDE, out_size=size), peer["msflip_prob"][0], 1e-5)
    assert_classes(predict_views(peer.model, views, size, SLIDE), peer["msflip_argmax"], peer["msflip_prob"])


def test_mmsegmentation_slides_the_same(shared):
    peer = Peer(shared / "fixtures/parity/mmseg-slide", 7)
    image = peer["input"][0]
    assert_close(predict_scores(peer.model, image, SLIDE), peer["logits"][0])
    assert_classes(predict(peer.model, image, SLIDE), peer["argmax"], peer["logits"])
    assert_close(predict_scores(peer.model, image, SLIDE, out_size=(120, 88)), peer["ori_logits"][0])
    assert_classes(predict(peer.model, image, SLIDE, out_size=(120, 88)), peer["ori_argmax"], peer["ori_logits"])


def test_mmsegmentation_merges_the_same(shared):
    peer = Peer(shared / "fixtures/parity/mmseg-msflip", 5)
    size, views = (80, 72), peer.views()
    for index, view in enumerate(views):
        assert_close(predict_scores(peer.model, [view], SLIDE, out_size=size), peer[f"aug{index}_logits"][0])
    assert_close(predict_scores(peer.model, views, SLIDE, out_size=size), peer["prob"], 1e-5)
    assert_classes(predict_views(peer.model, views, size, SLIDE), peer["argmax"], peer["prob"])


def test_mmsegmentation_picture_in_class_map_out(shared):
    """From the uint8 picture: our resizing, normalising, mirroring and merging against the peer's pipeline."""
    peer = Peer(shared / "fixtures/parity/mmseg-msflip", 5)
    picture = np.ascontiguousarray(peer["image_bgr"].numpy()[..., ::-1])
    found = peer.model.predict(picture, mode="slide", scales=(0.75, 1.0, 1.25), flip=True)
    assert_classes(found, peer["argmax"], peer["prob"])


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_paddleseg_scales_the_tensor_and_averages_logits(shared, mode):
    changes = {"window_rule": "paddleseg", "merge": "logits", "resize_rule": "tensor"}
    peer = Peer(shared / "fixtures/parity/paddleseg-slide-msflip", 6, changes, **PADDLESEG)
    image = peer["input"][0]
    if mode == "slide":
        assert_close(predict_scores(peer.model, image, InferenceConfig(mode="slide")), peer["slide_logits"][0])
    config = InferenceConfig(mode=mode, scales=(0.75, 1.0, 1.25), flip=True)
    merged = peer[f"msflip_{mode}_logits"]
    assert_close(predict_scores(peer.model, image, config), merged[0])
    assert_classes(predict(peer.model, image, config), peer[f"msflip_{mode}_argmax"], merged)


def test_paddlevit_slides_the_same(shared):
    changes = {"num_classes": 6, "stride": (30, 42)}  # the peer writes (width, height)
    peer = Peer(shared / "fixtures/parity/paddlevit-slide", 6, changes, **PADDLEVIT)
    for index, size in ((0, (110, 86)), (1, (64, 110))):
        image = peer[f"input{index}"][0]
        assert_close(predict_scores(peer.model, image, SLIDE), peer[f"slide{index}_logits"][0])
        scores = interpolate(peer[f"slide{index}_logits"], size, mode="bilinear", align_corners=False)
        assert_classes(predict(peer.model, image, SLIDE, out_size=size), peer[f"ori{index}_argmax"], scores)


def test_official_segmenter_slides_and_merges_the_same(shared):
    missing = {"variant": "segmenter-mask", "layer_norm_eps": 1e-5, "decoder_heads": 1}
    changes = {"window_rule": "segmenter"}
    peer = Peer(shared / "fixtures/parity/segmenter-inference", 6, changes, **missing)
    size, image = (80, 110), peer["input"][0]
    config = InferenceConfig(mode="slide")
    logits = predict_scores(peer.model, image, config)
    assert logits is not None
    assert_close(torch.from_numpy(logits).softmax(0).numpy(), peer["slide_prob"], 1e-5)
    assert_classes(predict(peer.model, image, config), peer["slide_argmax"], peer["slide_prob"])
    views = []
    for index in range(6):
        part = peer[f"aug{index}_input"][0]
        short = min(part.shape[1:])
        if short < 64:  # the official code enlarges the tensor; from a picture, min_short does it
            larger = tuple(int(64 * side / short) for side in part.shape[1:])
            part = interpolate(part[None], larger, mode="bilinear", align_corners=False)[0]
        views.append(view_of(part, bool(index % 2)))
    assert_close(predict_scores(peer.model, views, config, out_size=size), peer["msflip_prob"], 1e-5)
    assert_classes(predict_views(peer.model, views, size, config), peer["msflip_argmax"], peer["msflip_prob"])
