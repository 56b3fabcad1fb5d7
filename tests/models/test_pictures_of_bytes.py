"""A model takes decoded pictures as they are: same logits, loss, gradients and classes as from normalised ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.models.model import SegmentationModel, create_model

SMALL = {"width": 32, "num_heads": 2, "depth": 4, "patch_size": 8, "head_channels": 16, "decoder_width": 32}
SMALL |= {"decoder_num_heads": 2, "image_size": 32, "drop_path": 0.0, "decoder_dropout": 0.0}
NAMES = ["setr_naive_vit_t16", "setr_mla_vit_t16", "segmenter_linear_vit_t16", "segmenter_mask_vit_t16"]


def build(name: str, **changes: Any) -> SegmentationModel:
    return create_model(name, 4, **(SMALL | changes))


def pictures(model: SegmentationModel, height: int = 30, width: int = 43) -> tuple[Tensor, Tensor]:
    """Return bytes [B, H, W, 3] and the same normalised [B, 3, H, W]."""
    image = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    mean, std = torch.tensor(model.spec.mean), torch.tensor(model.spec.std)
    return image, ((image - mean) / std).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("changes", [{}, {"fit": "floor", "resize_to": "input"}], ids=["pad", "floor"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_bytes_are_those_of_the_normalised_picture(name: str, changes: dict[str, Any]) -> None:
    model = build(name, mean=(90.0, 128.0, 140.5), std=(50.0, 60.0, 70.0), **changes).eval()
    image, normalised = pictures(model)
    with torch.no_grad():
        for call in (model, model.logits, lambda x: torch.cat([y.flatten() for y in model.all_logits(x)])):
            torch.testing.assert_close(call(image), call(normalised), rtol=1e-4, atol=1e-4)
        assert model(image).shape == (2, 4, 30, 43)


@pytest.mark.parametrize("name", NAMES)
def test_training_on_bytes_gives_the_gradients_of_the_normalised_picture(name: str) -> None:
    model = build(name).train()
    image, normalised = pictures(model)
    labels = torch.randint(0, 4, (2, 30, 43), dtype=torch.uint8)
    gradients, losses = [], []
    for picture in (image, normalised):
        model.zero_grad()
        loss = model.loss(picture, labels)
        loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    assert "encoder.patch_embed.weight" in gradients[0]
    for key, got in gradients[0].items():
        largest = gradients[1][key].abs().max()
        assert (got - gradients[1][key]).abs().max() <= 2e-4 * largest + 1e-7, key


def test_predict_still_takes_a_decoded_picture() -> None:
    model = build("segmenter_linear_vit_t16").eval()
    image, normalised = pictures(model, 32, 32)
    with torch.no_grad():
        want = model(normalised[:1]).argmax(1)[0].numpy()
    assert np.array_equal(model.predict(image[0].numpy(), mode="whole"), want)


@pytest.mark.parametrize("name", NAMES[1:3])
def test_bytes_compile_without_graph_breaks(name: str) -> None:
    model = build(name).eval()
    image, _ = pictures(model)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(image), model(image))


def test_bfloat16_weights_and_autocast_take_bytes() -> None:
    model = build("setr_mla_vit_t16").eval()
    image, _ = pictures(model)
    with torch.no_grad():
        exact = model(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model(image).float(), exact, rtol=0.1, atol=0.1)
        torch.testing.assert_close(model.bfloat16()(image).float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 3, 32, 32), (1, 32, 32, 4), (1, 32, 32)], ids=str)
def test_bytes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = build("setr_naive_vit_t16")
    with pytest.raises(ShapeError, match=r"setr_naive_vit_t16: pictures must be .*uint8|bytes"):
        model(torch.zeros(shape, dtype=torch.uint8))


def test_bytes_need_a_model_of_three_channels() -> None:
    model = build("setr_naive_vit_t16", in_chans=4)
    with pytest.raises(ShapeError, match=r"pictures must be \[B, 4, H, W\], got"):
        model(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
