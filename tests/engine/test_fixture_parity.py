"""Sliding windows, scales and mirroring against what the published code bases recorded.

Through the engine's public entry points. The normalised inputs are the peers' own, so that only windows, averaging,
resizing and merging are compared. Logits are held to 1e-4, probabilities to 1e-5; classes must agree wherever the two
best of the peer differ by more than rounding, and how many pixels that leaves out is asserted.
"""

from __future__ import annotations

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
from tests.models.recorded import read_recorded

WINDOW, STRIDE = (64, 64), (42, 42)
NO_TABLE = torch.zeros(3, 256)
SLIDE = InferenceConfig(mode="slide", window_rule="mmseg", merge="probabilities", window_batch=3)


class Peer:
    """A recorded model, read as users read it, and its arrays; ``changes`` are fields of the spec."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        recorded = read_recorded(folder)
        self.model = recorded.model(**({"stride": STRIDE} | changes))
        self.arrays = {name: torch.from_numpy(array.copy()) for name, array in recorded.arrays.items()}

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
    peer = Peer(shared / "fixtures/parity/setr-official-slide-msflip")
    size, image = (110, 86), peer["input"][0]
    assert_close(predict_scores(peer.model, image, SLIDE), peer["slide_logits"][0])
    assert_close(predict_scores(peer.model, image, SLIDE, out_size=size), peer["slide_ori_logits"][0])
    assert_classes(predict(peer.model, image, SLIDE, out_size=size), peer["slide_argmax"], peer["slide_prob"])
    views = peer.views()
    assert_close(predict_scores(peer.model, views, SLIDE, out_size=size), peer["msflip_prob"][0], 1e-5)
    assert_classes(predict_views(peer.model, views, size, SLIDE), peer["msflip_argmax"], peer["msflip_prob"])


def test_mmsegmentation_slides_the_same(shared):
    peer = Peer(shared / "fixtures/parity/mmseg-slide")
    image = peer["input"][0]
    assert_close(predict_scores(peer.model, image, SLIDE), peer["logits"][0])
    assert_classes(predict(peer.model, image, SLIDE), peer["argmax"], peer["logits"])
    assert_close(predict_scores(peer.model, image, SLIDE, out_size=(120, 88)), peer["ori_logits"][0])
    assert_classes(predict(peer.model, image, SLIDE, out_size=(120, 88)), peer["ori_argmax"], peer["ori_logits"])


def test_mmsegmentation_merges_the_same(shared):
    peer = Peer(shared / "fixtures/parity/mmseg-msflip")
    size, views = (80, 72), peer.views()
    for index, view in enumerate(views):
        assert_close(predict_scores(peer.model, [view], SLIDE, out_size=size), peer[f"aug{index}_logits"][0])
    assert_close(predict_scores(peer.model, views, SLIDE, out_size=size), peer["prob"], 1e-5)
    assert_classes(predict_views(peer.model, views, size, SLIDE), peer["argmax"], peer["prob"])


def test_mmsegmentation_picture_in_class_map_out(shared):
    """From the uint8 picture: our resizing, normalising, mirroring and merging against the peer's pipeline."""
    peer = Peer(shared / "fixtures/parity/mmseg-msflip")
    picture = np.ascontiguousarray(peer["image_bgr"].numpy()[..., ::-1])
    found = peer.model.predict(picture, mode="slide", scales=(0.75, 1.0, 1.25), flip=True)
    assert_classes(found, peer["argmax"], peer["prob"])


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_paddleseg_scales_the_tensor_and_averages_logits(shared, mode):
    peer = Peer(shared / "fixtures/parity/paddleseg-slide-msflip")
    image = peer["input"][0]
    if mode == "slide":
        assert_close(predict_scores(peer.model, image, InferenceConfig(mode="slide")), peer["slide_logits"][0])
    config = InferenceConfig(mode=mode, scales=(0.75, 1.0, 1.25), flip=True)
    merged = peer[f"msflip_{mode}_logits"]
    assert_close(predict_scores(peer.model, image, config), merged[0])
    assert_classes(predict(peer.model, image, config), peer[f"msflip_{mode}_argmax"], merged)


def test_paddlevit_slides_the_same(shared):
    peer = Peer(shared / "fixtures/parity/paddlevit-slide", stride=(30, 42))  # the peer writes (width, height)
    for index, size in ((0, (110, 86)), (1, (64, 110))):
        image = peer[f"input{index}"][0]
        assert_close(predict_scores(peer.model, image, SLIDE), peer[f"slide{index}_logits"][0])
        scores = interpolate(peer[f"slide{index}_logits"], size, mode="bilinear", align_corners=False)
        assert_classes(predict(peer.model, image, SLIDE, out_size=size), peer[f"ori{index}_argmax"], scores)


def test_official_segmenter_slides_and_merges_the_same(shared):
    peer = Peer(shared / "fixtures/parity/segmenter-inference", decoder_num_heads=1, layer_norm_eps=1e-5)
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
