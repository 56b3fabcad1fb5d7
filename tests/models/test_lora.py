"""Adapters in the encoder: what learns, what is computed, what is saved, what merging gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import setr_fast
from setr_fast.checkpoints.transfer import start_from
from setr_fast.cli import main
from setr_fast.errors import ConfigError
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.models.options import ModelConfig
from tests.checkpoints.random_models import foreign_tensors, write_file

SMALL: dict[str, Any] = {"width": 32, "depth": 2, "num_heads": 2, "taps": (0, 1), "head_channels": 8}
TARGETS = ("attn.qkv", "mlp.fc2")


def _model(**changes: Any) -> SegmentationModel:
    torch.manual_seed(0)
    return create_model("setr_naive_vit_t16", 3, 32, **{**SMALL, **changes})


def _adapted() -> SegmentationModel:
    """A model whose adapters have learned something."""
    model = _model(lora_rank=4, lora_alpha=6.0, lora_targets=TARGETS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.normal_()
    return model.eval()


def _image() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_only_adapters_neck_and_heads_learn_and_start_from_the_models_function() -> None:
    plain, model = _model(), _model(lora_rank=4, lora_targets=TARGETS)
    wanted = {f"encoder.blocks.{i}.{t}.lora_{part}" for i in (0, 1) for t in TARGETS for part in "ab"}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if name.startswith("encoder.")} == wanted
    assert {name for name in learning if not name.startswith("encoder.")} == {
        name for name, _ in plain.named_parameters() if not name.startswith("encoder.")
    }
    own = model.state_dict()
    model.load_state_dict(own | plain.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(_image()), plain.eval()(_image()))
    model.train().loss(_image(), torch.zeros(2, 32, 32, dtype=torch.uint8)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_adapter_is_the_written_formula() -> None:
    layer = _adapted().encoder.blocks[0].attn.qkv
    x = torch.randn(5, 32)
    want = x @ layer.weight.T + layer.bias + 6.0 / 4 * x @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(x), want)


def test_merging_gives_a_plain_model_of_the_same_function(tmp_path: Path) -> None:
    model = _adapted()
    model.save(tmp_path / "adapted")
    again = setr_fast.load(tmp_path / "adapted")
    assert again.spec == model.spec
    assert main(["convert", str(tmp_path / "adapted"), str(tmp_path / "plain"), "--merge-lora"]) == 0
    plain = setr_fast.load(tmp_path / "plain")
    assert not any("lora" in name for name in plain.state_dict())
    assert plain.spec == _model().spec
    with torch.no_grad():
        assert torch.equal(again(_image()), model(_image()))
        want = model.double()(_image().double())
        torch.testing.assert_close(plain.double()(_image().double()), want, rtol=1e-5, atol=1e-6)
        assert (want - _model().eval().double()(_image().double())).abs().max() > 1e-2
    changed = json.loads((tmp_path / "plain" / "certificate.json").read_text())["keys"]["changed"]
    assert changed["encoder.blocks.1.mlp.fc2.weight"] == "its adapter added"


def test_merged_weights_are_exact_to_their_rounding(tmp_path: Path) -> None:
    model = _adapted()
    model.save(tmp_path / "adapted")
    assert main(["convert", str(tmp_path / "adapted"), str(tmp_path / "setr.pth"), "--to", "official"]) == 0
    merged = setr_fast.load(tmp_path / "setr.pth", num_heads=2, taps=(0, 1)).state_dict()
    state = model.state_dict()
    for name in (name for name in state if name.endswith("lora_a")):
        layer = name.removesuffix("lora_a")
        a, b = state[name].double(), state[layer + "lora_b"].double()
        exact = (state[layer + "weight"].double() + 1.5 * b @ a).float()
        assert torch.equal(merged[layer + "weight"], exact), layer


@pytest.mark.parametrize("form", ["foreign", "native", "adapted"])
def test_any_file_starts_a_model_with_adapters(form: str, tmp_path: Path) -> None:
    plain = _adapted() if form == "adapted" else _model(conv_bias=True)
    path = tmp_path / "native"
    if form == "foreign":
        path = write_file("setr", foreign_tensors("setr", plain.spec, plain.state_dict()), tmp_path)
    else:
        plain.save(path)
    torch.manual_seed(3)
    model = create_model("setr_naive_vit_t16", 3, 32, lora_rank=2, **SMALL)
    done = start_from(model, path)
    assert all("lora_" in name for name in done["fresh"])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(_image()), plain.eval()(_image()), rtol=1e-4, atol=1e-4)


def test_the_options_reach_the_model_and_are_checked() -> None:
    options = ModelConfig(lora_rank=8, lora_alpha=4.0, lora_targets=("mlp.fc1",)).overrides()
    assert _model(**options).encoder.blocks[0].mlp.fc1.lora_a.shape == (8, 32)
    with pytest.raises(ConfigError, match=r"lora_targets must be some of attn\.qkv"):
        _model(lora_rank=2, lora_targets=("qkv",))
