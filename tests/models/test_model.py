"""How whole models behave: rows of a batch, learning, gradients, seeds, precisions, sizes, stochastic depth."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.nn.block import drop_path, growing_rates

SMALL = {"width": 32, "num_heads": 2, "depth": 4, "patch_size": 8, "head_channels": 16, "decoder_width": 32}
SMALL |= {"decoder_num_heads": 2, "image_size": 32}
NAMES = [f"{head}_vit_t16" for head in ("setr_naive", "setr_pup", "setr_mla", "segmenter_linear", "segmenter_mask")]
every = pytest.mark.parametrize("name", NAMES)


def small(name: str, num_classes: int = 4, **changes: object) -> SegmentationModel:
    return create_model(name, num_classes, **(SMALL | changes))


def pictures(count: int = 2, height: int = 32, width: int = 32) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, height, width), torch.randint(0, 4, (count, height, width), dtype=torch.uint8)


@every
def test_a_picture_gives_the_same_logits_alone_and_in_a_batch(name: str) -> None:
    model = small(name).eval()
    image, _ = pictures(3, 29, 43)
    with torch.no_grad():
        whole = model(image)
        for row in range(3):
            torch.testing.assert_close(model(image[row : row + 1]), whole[row : row + 1], rtol=1e-4, atol=1e-4)


@every
def test_twenty_steps_overfit_four_pictures(name: str) -> None:
    model = small(name, drop_path=0.0, decoder_dropout=0.0).train()
    # A class is the colour of its patch: something that a network can hold after twenty steps.
    classes = torch.randint(0, 4, (4, 4, 4))
    labels = classes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    image = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)[:, :3].float() * 2 - 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model.loss(image, labels).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(image, labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6 * first
    # Borders between patches stay blurred by the bilinear upsampling.
    right = (model(image).argmax(1) == labels).float().mean().item()
    assert right > 0.75, (first, loss.item(), right)


DEAD = {"setr_mla_vit_t16": {"encoder.cls_token"}}


@every
def test_gradients_reach_every_live_parameter(name: str) -> None:
    model = small(name, drop_path=0.0, decoder_dropout=0.0).train()
    model.loss(*pictures()).backward()
    dead = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert dead == DEAD.get(name, set())
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == dead, "a parameter without any effect must not ask for a gradient"


def test_gradients_stop_at_the_auxiliary_heads_where_there_are_none() -> None:
    model = small("setr_pup_vit_t16", aux_levels=())
    assert len(model.all_logits(torch.zeros(2, 3, 32, 32))) == 1
    assert not len(model.aux_heads)
    assert model.loss(*pictures()).isfinite()


@every
def test_children_carry_the_promised_names(name: str) -> None:
    model = small(name)
    neck = ["neck"] if "mla" in name else []
    assert [n for n, _ in model.named_children()] == ["encoder", *neck, "head", "aux_heads"]


@every
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    states = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        states.append(small(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["encoder.pos_embed"], states[2]["encoder.pos_embed"])


def test_weights_start_as_published() -> None:
    state = create_model("segmenter_mask_vit_t16", 150, image_size=128, depth=2).state_dict()
    for key in ("encoder.pos_embed", "encoder.blocks.0.attn.qkv.weight", "head.class_embed", "head.proj_in.weight"):
        assert state[key].std().item() == pytest.approx(0.02, rel=0.1), key
        assert state[key].abs().max() < 2.0, key  # truncated at two, as timm does
    assert state["head.proj_patch"].std().item() == pytest.approx(192**-0.5, rel=0.05)
    assert not state["encoder.blocks.0.attn.qkv.bias"].any()
    assert state["encoder.norm.weight"].eq(1).all()


@every
def test_bfloat16_autocast_trains_and_stays_close(name: str) -> None:
    model = small(name, drop_path=0.0, decoder_dropout=0.0).train()
    image, labels = pictures(4)
    exact = model.loss(image, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(image, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert model.eval()(image).isfinite().all()


@every
def test_bfloat16_weights_give_finite_logits(name: str) -> None:
    model = small(name).eval().bfloat16()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 37, 20).bfloat16()).isfinite().all()


@pytest.mark.parametrize("name", ["setr_mla_vit_t16", "segmenter_mask_vit_t16"])
def test_compiles_without_graph_breaks(name: str) -> None:
    model = small(name).eval()
    with torch.no_grad():
        explained = torch.compile(model, backend="eager", fullgraph=True)
        image = torch.randn(1, 3, 32, 40)
        torch.testing.assert_close(explained(image), model(image))


def test_the_mask_head_compares_directions_and_normalises_over_classes() -> None:
    model = small("segmenter_mask_vit_t16", num_classes=6).eval()
    image, _ = pictures()
    with torch.no_grad():
        logits = model.logits(image)
        assert logits.mean(1).abs().max() < 1e-5
        assert (logits.var(1, unbiased=False) - 1).abs().max() < 0.02  # epsilon takes a little
        for parameter in (model.head.proj_patch, model.head.proj_class):
            parameter.mul_(50.0)
        torch.testing.assert_close(model.logits(image), logits, rtol=1e-3, atol=1e-3)


def test_class_tokens_follow_the_patches_in_the_mask_head() -> None:
    """Exchanging two classes exchanges their logits."""
    model = small("segmenter_mask_vit_t16").eval()
    image, _ = pictures()
    with torch.no_grad():
        before = model.logits(image)
        model.head.class_embed.copy_(model.head.class_embed[:, [1, 0, 2, 3]])
        torch.testing.assert_close(model.logits(image), before[:, [1, 0, 2, 3]], rtol=1e-4, atol=1e-4)


def test_padding_is_cropped_away_after_the_last_resize() -> None:
    model = small("segmenter_linear_vit_t16").eval()
    image, _ = pictures(1, 30, 21)
    padded = torch.nn.functional.pad(image, (0, 3, 0, 2))
    with torch.no_grad():
        torch.testing.assert_close(model(image), model(padded)[..., :30, :21])


def test_floor_ignores_the_last_rows_and_columns() -> None:
    model = small("segmenter_linear_vit_t16", fit="floor", resize_to="input").eval()
    image, _ = pictures(1, 33, 39)
    other = image.clone()
    other[..., 32:, :] = 9.0
    other[..., 32:] = 9.0
    with torch.no_grad():
        torch.testing.assert_close(model(image), model(other))
        assert model(image).shape[-2:] == (33, 39)


def test_positions_by_token_count_are_not_resized_for_another_shape() -> None:
    by_count = small("segmenter_linear_vit_t16", pos_resize_when="tokens").eval()
    by_grid = small("segmenter_linear_vit_t16").eval()
    by_grid.load_state_dict(by_count.state_dict())
    with torch.no_grad():
        same, other = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 16, 64)  # 16 patches both
        assert torch.equal(by_count(same), by_grid(same))
        assert not torch.allclose(by_count(other), by_grid(other))
        wide = torch.randn(1, 3, 16, 40)
        assert torch.equal(by_count(wide), by_grid(wide))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 0, 32)], ids=str)
def test_pictures_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="pictures must"):
        small("setr_pup_vit_t16")(torch.zeros(shape))


def test_labels_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match="labels must be as large as the pictures"):
        small("setr_pup_vit_t16").loss(torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 31, dtype=torch.uint8))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    x = torch.ones(4000, 2, 3)
    y = drop_path(x, 0.25, training=True)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert drop_path(x, 0.25, training=False) is x
    assert not drop_path(x, 1.0, training=True).any()


def test_drop_path_grows_with_depth_and_spares_attention_where_told() -> None:
    assert growing_rates(0.1, 3) == [0.0, 0.05, 0.1]
    blocks = small("segmenter_linear_vit_t16", drop_path=0.3, drop_path_on="ffn").encoder.blocks
    assert [b.attn_drop_path for b in blocks] == [0.0] * 4
    assert [b.mlp_drop_path for b in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_dropout_acts_in_training_only() -> None:
    model = small("setr_naive_vit_t16", dropout=0.5)
    image, _ = pictures()
    model.eval()
    assert torch.equal(model(image), model(image))
    model.encoder.train()
    assert not torch.equal(model(image), model(image))


def test_shared_modules_are_stored_once() -> None:
    own, shared = small("setr_mla_vit_t16"), small("setr_mla_vit_t16", shared_modules=True)
    assert (len(own.aux_heads), len(own.head.branches), len(own.neck.norms)) == (4, 4, 4)
    assert (len(shared.aux_heads), len(shared.head.branches), len(shared.neck.norms)) == (1, 1, 1)
    assert len(shared.all_logits(torch.zeros(2, 3, 32, 32))) == 5


def test_predict_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def predict(model: object, image: object, config: object) -> np.ndarray:
        seen.append((model, image, config))
        return np.zeros((2, 2), np.uint8)

    stand_in = types.ModuleType("setr_fast.engine.predictor")
    stand_in.predict = predict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "setr_fast.engine.predictor", stand_in)
    model = small("setr_pup_vit_t16")
    model.predict("x.jpg", scales=[0.5, 1.0], flip=True)
    model.predict("x.jpg", mode="slide")
    assert seen[0][:2] == (model, "x.jpg")
    assert (seen[0][2].mode, seen[0][2].scales, seen[0][2].flip) == ("auto", (0.5, 1.0), True)
    assert seen[1][2].mode == "slide"
