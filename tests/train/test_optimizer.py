"""Schedule and parameter groups against the published rules."""

from __future__ import annotations

import pytest
import torch

from setr_fast.errors import ConfigError
from setr_fast.models.model import create_model
from setr_fast.train.optimizer import build_optimizer, learning_rate, parameter_groups
from setr_fast.train.options import OptimConfig

SETR = OptimConfig(
    name="sgd",
    lr=0.01,
    min_lr=1e-4,
    head_lr_multiplier=10,
    warmup_steps=0,
    weight_decay=0.0,
    momentum=0.9,
    decay_all=True,
)


def test_poly_schedule_equals_the_published_formula() -> None:
    for step in (0, 1, 999, 39_999):
        expected = (0.01 - 1e-4) * (1 - step / 40_000) ** 0.9 + 1e-4
        assert learning_rate(0.01, step, 40_000, SETR) == pytest.approx(expected, rel=1e-12)


def test_heads_fall_from_ten_times_the_rate_to_the_same_minimum() -> None:
    assert learning_rate(0.1, 0, 100, SETR) == pytest.approx(0.1)
    assert learning_rate(0.1, 100, 100, SETR) == pytest.approx(1e-4)


def test_warmup_rises_linearly_and_then_leaves_the_schedule_alone() -> None:
    warm = OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=4, power=1.0)
    rates = [learning_rate(1.0, s, 100, warm) for s in range(8)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == pytest.approx(1 - 4 / 100)


@pytest.mark.parametrize("name", ["setr_pup_vit_t16", "setr_mla_vit_t16", "segmenter_mask_vit_t16"])
def test_every_parameter_is_in_one_group_and_only_heads_are_multiplied(name: str) -> None:
    model = create_model(name, num_classes=3, image_size=32)
    groups = parameter_groups(model, SETR)
    members = [p for g in groups for p in g["params"]]
    assert len(members) == len({id(p) for p in members}) == sum(p.requires_grad for p in model.parameters())
    fast = {id(p) for g in groups if g["base_lr"] == pytest.approx(0.1) for p in g["params"]}
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # the class token that MLA cuts off
            continue
        in_head = parameter_name.startswith(("head.", "aux_heads."))
        assert (id(parameter) in fast) == in_head, parameter_name


def test_mla_neck_learns_at_the_encoders_rate() -> None:
    model = create_model("setr_mla_vit_t16", num_classes=3, image_size=32)
    assert model.neck is not None
    neck = {id(p) for p in model.neck.parameters()}
    for group in parameter_groups(model, SETR):
        if neck & {id(p) for p in group["params"]}:
            assert group["base_lr"] == pytest.approx(0.01)


def test_norms_biases_and_embeddings_are_not_decayed_unless_asked() -> None:
    model = create_model("segmenter_mask_vit_t16", num_classes=3, image_size=32)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in parameter_groups(model, OptimConfig(weight_decay=0.1)):
        for parameter in group["params"]:
            name = names[id(parameter)]
            embedding = any(word in name for word in ("pos", "token", "emb")) and "patch" not in name
            assert (group["weight_decay"] == 0) == (parameter.ndim < 2 or embedding), name
    assert all(g["weight_decay"] == 0.1 for g in parameter_groups(model, OptimConfig(weight_decay=0.1, decay_all=True)))


def test_sgd_and_adamw_are_torchs_own_with_the_options_given() -> None:
    model = create_model("setr_naive_vit_t16", num_classes=3, image_size=32)
    sgd = build_optimizer(model, OptimConfig(name="sgd", nesterov=True, momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["momentum"] == 0.8
    assert isinstance(build_optimizer(model, OptimConfig(betas=(0.8, 0.9))), torch.optim.AdamW)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_step_on_a_card_is_the_processors(name: str) -> None:
    config, moved = OptimConfig(name=name, lr=0.1), []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = create_model("setr_naive_vit_t16", num_classes=3, image_size=32, depth=2, taps=(0, 1)).to(device)
        optimizer = build_optimizer(model, config)
        assert optimizer.defaults["fused"] is (True if device == "cuda" else None)
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.01 * number)
        optimizer.step()
        moved.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-5, atol=1e-6)


def test_blocks_behind_the_last_tap_are_not_trained() -> None:
    """They never run: with a gradient expected of them, several processes would wait for it."""
    model = create_model("setr_naive_vit_t16", num_classes=3, image_size=32, depth=4, taps=(0, 1, 2), aux_levels=(0, 1))
    model.loss(torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.uint8)).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert not any(p.requires_grad for p in model.encoder.blocks[3].parameters())


def test_a_minimum_above_the_learning_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.min_lr: must be at most"):
        OptimConfig(lr=1e-6)


def test_rates_fall_by_layer_from_the_last_block_down() -> None:
    """As in BEiT: what is below the blocks counts as one more layer, neck and heads keep the whole rate."""
    config = OptimConfig(lr=1.0, min_lr=0.0, layer_decay=0.5, head_lr_multiplier=3.0)
    model = create_model("setr_mla_vit_t16", num_classes=3, image_size=32, depth=6, taps=(1, 2, 3, 4))
    rates = {id(p): group["base_lr"] for group in parameter_groups(model, config) for p in group["params"]}
    expected = {f"encoder.blocks.{i}.": 0.5 ** (4 - i) for i in range(5)}  # the sixth never runs
    expected |= {"encoder.patch_embed": 0.5**5, "encoder.pos_embed": 0.5**5, "neck": 1.0, "head": 3.0, "aux_heads": 3.0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (rate,) = (value for start, value in expected.items() if name.startswith(start))
            assert rates[id(parameter)] == pytest.approx(rate), name
    names = [group["name"] for group in parameter_groups(model, config)]
    assert len(set(names)) == len(names)
    final = create_model("segmenter_linear_vit_t16", num_classes=3, image_size=32, depth=2, taps=(1,))
    rates = {id(p): group["base_lr"] for group in parameter_groups(final, config) for p in group["params"]}
    assert rates[id(final.encoder.norm.weight)] == 1.0  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="layer_decay"):
        OptimConfig(layer_decay=1.5)


def test_a_layers_rate_below_the_minimum_never_rises() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=0)
    rates = [learning_rate(0.01, step, 10, config) for step in range(10)]
    assert rates == pytest.approx([0.01] * 10)


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_equals_torchs_own_after_the_warmup(warmup: int) -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, schedule="cosine", warmup_steps=warmup)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.1)
    for step in range(100):
        want = schedule.get_last_lr()[0] * min(1.0, (step + 1) / (warmup + 1))
        assert learning_rate(1.0, step, 100, config) == pytest.approx(want), step
        optimizer.step()
        schedule.step()
