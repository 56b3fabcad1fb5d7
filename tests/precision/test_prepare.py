"""A model in another precision: same answers, weights converted once, never stale, the model itself untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import setr_fast
from setr_fast.errors import ConfigError
from setr_fast.models.model import SegmentationModel
from setr_fast.nn.block import Block
from setr_fast.nn.conv import FoldedStage
from setr_fast.precision.block import InferenceBlock
from setr_fast.precision.linears import HalfLinear
from setr_fast.precision.prepare import prepared, used

NAMES = ["setr_naive_vit_t16", "setr_pup_vit_t16", "setr_mla_vit_t16", "segmenter_linear_vit_t16"]
NAMES += ["segmenter_mask_vit_t16"]
Make = Callable[..., SegmentationModel]


def logits(model: SegmentationModel, windows: Tensor, precision: str) -> Tensor:
    ready = prepared(model, precision, windows)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=ready.autocast):
        return ready.model.logits(windows).float()  # type: ignore[operator]


@torch.inference_mode()
def exact(model: SegmentationModel, windows: Tensor) -> Tensor:
    """Return the logits of the model's own modules by reference ops in float64."""
    with setr_fast.backend("reference"):
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (model.spec.mean, model.spec.std))
        picture = ((windows.double() - mean) / std).permute(0, 3, 1, 2)
        found = model.double().logits(picture)
    model.float()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_fp32_is_as_near_to_float64_as_the_reference_in_eager(name: str, make_model: Make, windows: Tensor) -> None:
    model = make_model(name)
    truth = exact(model, windows)
    with torch.inference_mode(), setr_fast.backend("reference"):
        reference = (model.logits(windows) - truth).abs().max()
    assert (logits(model, windows, "fp32") - truth).abs().max() <= 2 * reference


@pytest.mark.parametrize("name", NAMES)
def test_bf16_rounds_no_more_than_sixteen_bits_do(name: str, make_model: Make, windows: Tensor) -> None:
    model = make_model(name)
    truth = exact(model, windows)
    with torch.inference_mode(), setr_fast.backend("reference"), torch.autocast("cpu", torch.bfloat16):
        reference = (model.logits(windows).float() - truth).abs().mean()
    error = (logits(model, windows, "bf16") - truth).abs().mean()
    assert 0 < error <= 2 * reference  # 0 would be float32 under another name


def test_bf16_weights_are_converted_once_and_the_model_keeps_its_own(make_model: Make, windows: Tensor) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ready = prepared(model, "bf16", windows)
    assert prepared(model, "bf16", windows) is ready
    kinds = {type(m) for m in ready.model.modules()}
    assert {InferenceBlock, HalfLinear, FoldedStage} <= kinds
    assert Block not in kinds
    assert all(isinstance(block, Block) for block in model.encoder.blocks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    own = {value.data_ptr() for value in model.parameters()}
    wide = [n for n, p in ready.model.named_parameters() if p.dtype is torch.float32 and p.ndim > 1]
    assert all(ready.model.get_parameter(name).data_ptr() in own for name in wide), "only float32 that is shared stays"


def test_fp32_shares_every_weight_of_the_encoder(make_model: Make, windows: Tensor) -> None:
    model = make_model("segmenter_linear_vit_t16")
    own = {value.data_ptr() for value in model.parameters()}
    assert all(value.data_ptr() in own for value in prepared(model, "fp32", windows).model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_weights_that_change_count_at_once(precision: str, make_model: Make, windows: Tensor) -> None:
    model = make_model()
    before = logits(model, windows, precision)
    with torch.no_grad():
        model.encoder.blocks[0].mlp.fc1.weight.mul_(3.0)
        model.head.stages[0].bn.running_var.mul_(2.0)
    after = logits(model, windows, precision)
    assert not torch.equal(before, after)
    other = make_model()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(after, logits(other, windows, precision))


def test_a_model_that_is_gone_leaves_nothing_behind(make_model: Make, windows: Tensor) -> None:
    from setr_fast.precision import prepare

    before = len(prepare._KEPT)
    model = make_model()
    prepared(model, "fp32", windows)
    assert len(prepare._KEPT) == before + 1
    del model
    assert len(prepare._KEPT) == before


def test_a_module_in_two_places_stays_one(make_model: Make, windows: Tensor) -> None:
    model = make_model("setr_mla_vit_t16", shared_modules=True, taps=(0, 1))
    ready = prepared(model, "fp32", windows).model
    assert len(list(ready.modules())) == len(set(ready.modules()))
    torch.testing.assert_close(logits(model, windows, "fp32"), exact(model, windows).float())


def test_a_model_of_another_class_runs_as_it_is(windows: Tensor) -> None:
    other = nn.Conv2d(3, 4, 1)
    assert prepared(other, "fp32", windows).model is other
    assert prepared(other, "bf16", windows).autocast
    with pytest.raises(ConfigError, match=r"int8 must have a model of this package, got Conv2d"):
        prepared(other, "int8", windows)


def test_what_a_precision_became_is_told(make_model: Make, windows: Tensor) -> None:
    model = make_model()
    assert used(model, "int8") == {"asked": "int8"}
    prepared(model, "int8", windows)
    told: dict[str, Any] = used(model, "int8")
    assert told["used"] == "int8"
    assert told["calibration"]["windows"] == 2
    assert set(told["calibration"]["sqnr_db"]) - {"encoder.blocks.0.attn", "encoder.blocks.1.attn"} == {
        f"encoder.blocks.{b}.{n}" for b in (0, 1) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


def test_the_form_of_gelu_is_a_preparation_of_its_own(make_model: Make, windows: Tensor) -> None:
    model = make_model()
    exact, tanh = (prepared(model, "bf16", windows, form) for form in (True, False))
    assert exact is not tanh
    assert prepared(model, "bf16", windows, False) is tanh
    forms = [ready.model.get_submodule("encoder.blocks.0.fc1").exact_gelu for ready in (exact, tanh)]
    assert forms == [True, False]


@pytest.mark.gpu
def test_the_tanh_form_moves_less_than_bfloat16_rounds() -> None:
    layer, x = nn.Linear(256, 512).cuda(), torch.randn(3, 50, 256, device="cuda")
    exact = torch.nn.functional.gelu(layer(x))
    rounding = (HalfLinear(layer)(x, gelu=True).float() - exact).abs().max()
    assert (HalfLinear(layer, exact_gelu=False)(x, gelu=True).float() - exact).abs().max() <= 2 * rounding
