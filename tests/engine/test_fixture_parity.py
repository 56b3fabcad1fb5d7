"""Sliding windows, scales and mirroring against what the published code bases recorded.

Tensor in, class map out: the normalised inputs are the peers' own, so that only windows, averaging, resizing and
merging are compared. Probabilities are held to 1e-5, logits to 1e-4; classes must agree wherever the two best of the
peer differ by more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from setr_fast.engine.views import View, class_map
from setr_fast.models.model import SegmentationModel
from setr_fast.models.store import fill_model
from tests.models import fixture_maps, fixture_specs

WINDOW, STRIDE = (64, 64), (42, 42)


class Peer:
    """A recorded model and its arrays."""

    def __init__(self, folder: Path, num_classes: int, **missing: Any) -> None:
        config = json.loads((folder / "config.json").read_text()) | missing
        spec = fixture_specs.spec_of(config).replace(num_classes=num_classes)
        with torch.device("meta"):
            wanted = SegmentationModel(spec).state_dict()
        source = fixture_maps.read_weights(folder / config["weights"])
        self.model = fill_model(spec, fixture_maps.convert(config, source, wanted), where=folder.name)
        with np.load(folder / "data.npz") as data:
            self.arrays = {name: torch.from_numpy(data[name].copy()) for name in data.files}

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def augmented(self) -> list[Tensor]:
        return [self[f"aug{i}_input"][0] for i in range(sum(name.endswith("_input") for name in self.arrays))]


def _view(image: Tensor, mirrored: bool) -> View:
    """View of a normalised picture; the peers' mirrored inputs are mirrored already."""

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        return image[:, top : top + height, left : left + width].contiguous()

    return View(read, (image.shape[1], image.shape[2]), mirrored, WINDOW, STRIDE)


@torch.no_grad()
def _scores(peer: Peer, views: list[View], size: tuple[int, int], rule: str = "mmseg") -> list[Tensor]:
    whole = (0, size[1])
    return [view.rows(peer.model, size, whole, rule, 2).rows(0, size[0]) for view in views]


@torch.no_grad()
def _assert_classes(peer: Peer, views: list[View], best: Tensor, probabilities: Tensor, rule: str = "mmseg") -> None:
    size = (best.shape[-2], best.shape[-1])
    num_classes = peer.model.spec.num_classes
    found = class_map(peer.model, views, size, num_classes, rule=rule, batch=3, budget=2**20)
    first, second = probabilities.reshape(-1, *size).topk(2, dim=0).values
    sure = (first - second > 1e-4).numpy()
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure], best.reshape(size).numpy()[sure])


def test_official_setr_slides_and_merges_the_same(shared):
    peer = Peer(shared / "fixtures/parity/setr-official-slide-msflip", 6)
    size = (110, 86)
    image = _view(peer["input"][0], False)
    torch.testing.assert_close(_scores(peer, [image], (96, 75))[0], peer["slide_logits"][0], rtol=0, atol=1e-4)
    torch.testing.assert_close(_scores(peer, [image], size)[0], peer["slide_ori_logits"][0], rtol=0, atol=1e-4)
    _assert_classes(peer, [image], peer["slide_argmax"], peer["slide_prob"])
    views = [_view(aug, bool(index % 2)) for index, aug in enumerate(peer.augmented())]
    mean = torch.stack([part.softmax(0) for part in _scores(peer, views, size)]).mean(0)
    torch.testing.assert_close(mean, peer["msflip_prob"][0], rtol=0, atol=1e-5)
    _assert_classes(peer, views, peer["msflip_argmax"], peer["msflip_prob"])


def test_mmsegmentation_slides_the_same(shared):
    peer = Peer(shared / "fixtures/parity/mmseg-slide", 7)
    image = _view(peer["input"][0], False)
    torch.testing.assert_close(_scores(peer, [image], (150, 110))[0], peer["logits"][0], rtol=0, atol=1e-4)
    torch.testing.assert_close(_scores(peer, [image], (120, 88))[0], peer["ori_logits"][0], rtol=0, atol=1e-4)
    _assert_classes(peer, [image], peer["ori_argmax"], peer["ori_logits"])


def test_mmsegmentation_merges_the_same(shared):
    peer = Peer(shared / "fixtures/parity/mmseg-msflip", 5)
    views = [_view(aug, bool(index % 2)) for index, aug in enumerate(peer.augmented())]
    parts = _scores(peer, views, (80, 72))
    for index, part in enumerate(parts):
        torch.testing.assert_close(part, peer[f"aug{index}_logits"][0], rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.stack([p.softmax(0) for p in parts]).mean(0), peer["prob"], rtol=0, atol=1e-5)
    _assert_classes(peer, views, peer["argmax"], peer["prob"])


def test_official_segmenter_slides_and_merges_the_same(shared):
    missing = {"variant": "segmenter-mask", "layer_norm_eps": 1e-5, "decoder_heads": 1}
    peer = Peer(shared / "fixtures/parity/segmenter-inference", 6, **missing)
    image = _view(peer["input"][0], False)
    alone = _scores(peer, [image], (80, 110), "segmenter")[0].softmax(0)
    torch.testing.assert_close(alone, peer["slide_prob"], rtol=0, atol=1e-5)
    views = []
    for index, aug in enumerate(peer.augmented()):
        short = min(aug.shape[1:])
        if short < 64:  # the official code enlarges the tensor; from a picture, min_short does it
            larger = tuple(int(64 * side / short) for side in aug.shape[1:])
            aug = interpolate(aug[None], larger, mode="bilinear", align_corners=False)[0]
        views.append(_view(aug, bool(index % 2)))
    mean = torch.stack([part.softmax(0) for part in _scores(peer, views, (80, 110), "segmenter")]).mean(0)
    torch.testing.assert_close(mean, peer["msflip_prob"], rtol=0, atol=1e-5)
    _assert_classes(peer, views, peer["msflip_argmax"], peer["msflip_prob"], "segmenter")
