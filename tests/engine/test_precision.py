"""The engine hands bytes to the model and keeps to the precision that is asked for, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from setr_fast.data.transforms import normalise_table
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.pictures import as_pixels, byte_reader, reader
from setr_fast.engine.predictor import predict_scores
from setr_fast.models.model import SegmentationModel, create_model

Picture = Callable[[int, int], np.ndarray]


@pytest.fixture
def model() -> SegmentationModel:
    sizes: dict[str, Any] = {"width": 64, "depth": 2, "num_heads": 2, "taps": (0, 1), "head_channels": 16}
    sizes["aux_levels"] = ()
    made = create_model("setr_pup_vit_t16", num_classes=5, image_size=64, **sizes)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [(40, 60), (31, 77), (20, 30)])
def test_windows_of_bytes_are_those_of_the_normalised_picture(
    size: tuple[int, int], mirrored: bool, make_picture: Picture
) -> None:
    pixels = as_pixels(make_picture(40, 60))
    table = normalise_table((120.0, 110.0, 100.0), (60.0, 55.0, 50.0))
    window = byte_reader(pixels, size, mirrored)(3, 5, 16, 20)
    assert window.dtype is torch.uint8
    known = torch.stack([table[c][window[..., c].long()] for c in range(3)])
    assert torch.equal(known, reader(pixels, size, mirrored, table, as_bytes=True)(3, 5, 16, 20))


def test_at_its_own_size_a_window_is_a_view_of_the_picture(make_picture: Picture) -> None:
    pixels = as_pixels(make_picture(40, 60))
    window = byte_reader(pixels, (40, 60), False)(3, 5, 16, 20)
    assert window.untyped_storage().data_ptr() == pixels.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "options", [{"mode": "whole"}, {"mode": "slide"}, {"mode": "slide", "scales": (0.5, 1.0), "flip": True}]
)
def test_bytes_and_floats_give_the_same_scores(
    options: dict[str, Any], model: SegmentationModel, make_picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, seen = make_picture(90, 70), []
    logits = SegmentationModel.logits
    monkeypatch.setattr(SegmentationModel, "logits", lambda self, x: seen.append(x.dtype) or logits(self, x))
    from_bytes = predict_scores(model, image, InferenceConfig(**options))
    assert set(seen) == {torch.uint8}
    monkeypatch.setattr(SegmentationModel, "takes_bytes", False)
    from_floats = predict_scores(model, image, InferenceConfig(**options))
    assert set(seen) == {torch.uint8, torch.float32}
    np.testing.assert_allclose(from_bytes, from_floats, atol=2e-5)


def test_a_picture_below_the_position_table_is_padded_with_the_mean_colour(make_picture: Picture) -> None:
    sizes: dict[str, Any] = {"width": 32, "depth": 1, "num_heads": 1, "taps": (0,), "pos_resize": "none"}
    model = create_model("segmenter_linear_vit_t16", num_classes=3, image_size=64, **sizes).eval()
    image = make_picture(50, 64)
    scores = predict_scores(model, image, InferenceConfig(mode="slide"))
    table = normalise_table(model.spec.mean, model.spec.std)
    floats = torch.stack([table[c][torch.from_numpy(image[..., c]).long()] for c in range(3)])
    padded = torch.nn.functional.pad(floats, (0, 0, 0, 14))
    with torch.inference_mode():
        whole: Tensor = model(padded[None])[0, :, :50]
    np.testing.assert_allclose(scores, whole.numpy(), atol=2e-5)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 1.0), ("bf16", 0.97), ("int8", 0.97)])
def test_every_precision_agrees_with_the_plain_model(
    precision: str, least: float, model: SegmentationModel, make_picture: Picture
) -> None:
    image = make_picture(64, 64)
    table = normalise_table(model.spec.mean, model.spec.std)
    floats = torch.stack([table[c][torch.from_numpy(image[..., c]).long()] for c in range(3)])
    with torch.inference_mode():
        want = model(floats[None])[0].argmax(0).numpy()
    found = model.predict(image, precision=precision)
    assert len(np.unique(want)) > 1
    assert (found == want).mean() >= least
