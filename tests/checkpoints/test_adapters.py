"""Adapters and heads in a folder of their own, put onto their base by name and hash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import setr_fast
from setr_fast.checkpoints.adapters import save_adapters
from setr_fast.checkpoints.transfer import start_from
from setr_fast.cli import main
from setr_fast.engine.checkpoints import load_checkpoint, weights_sha256
from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.models.model import SegmentationModel, create_model
from tests.checkpoints.random_models import foreign_tensors, write_file

SMALL: dict[str, Any] = {"width": 32, "depth": 2, "num_heads": 2, "taps": (0, 1), "head_channels": 8}
LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 6.0, "lora_targets": ("attn.qkv", "mlp.fc2")}
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _base(**changes: Any) -> SegmentationModel:
    return create_model("setr_pup_vit_t16", 3, 32, **{**SMALL, **changes}).eval()


def _trained(base: Path, classes: int = 5) -> SegmentationModel:
    """A model that started from a base, all of whose trained tensors have changed since."""
    model = create_model("setr_pup_vit_t16", classes, 32, **SMALL, **LORA)
    start_from(model, base, reinit_head=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return model.eval()


def _logits(model: SegmentationModel) -> Tensor:
    with torch.no_grad():
        return model(IMAGE)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    _base().save(tmp_path / "base")
    return tmp_path / "base"


def test_a_small_folder_and_its_base_give_the_model_to_the_bit(base: Path, tmp_path: Path) -> None:
    model = _trained(base)
    model.save(tmp_path / "best")
    argv = ["convert", str(tmp_path / "best"), str(tmp_path / "adapters"), "--to", "adapters", "--base", str(base)]
    assert main(argv) == 0
    file = tmp_path / "adapters" / "adapter_model.safetensors"
    assert file.stat().st_size < (base / "model.safetensors").stat().st_size / 3
    again = setr_fast.load(tmp_path / "adapters")
    assert again.spec == model.spec
    assert torch.equal(_logits(again), _logits(model))
    evaluated, place = load_checkpoint(tmp_path / "adapters")
    assert torch.equal(_logits(evaluated), _logits(model))
    assert len(weights_sha256(place)) == 64
    assert main(["convert", str(tmp_path / "adapters"), str(tmp_path / "whole")]) == 0
    whole, state = setr_fast.load(tmp_path / "whole").state_dict(), model.state_dict()
    assert all(torch.equal(whole[name], state[name]) for name in state)
    assert main(["convert", str(tmp_path / "adapters"), str(tmp_path / "plain"), "--merge-lora"]) == 0
    torch.testing.assert_close(_logits(setr_fast.load(tmp_path / "plain")), _logits(model), rtol=1e-5, atol=1e-6)


def test_names_rank_alpha_and_layers_are_as_peft_writes_them(base: Path, tmp_path: Path) -> None:
    save_adapters(_trained(base), tmp_path / "adapters", base)
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 6.0)
    assert config["base_model_name_or_path"] == str(base)
    assert "head" in config["modules_to_save"]
    with safe_open(tmp_path / "adapters" / "adapter_model.safetensors", "pt") as file:
        names, facts = set(file.keys()), file.metadata()
    assert (facts["rank"], facts["alpha"], len(facts["base_sha256"])) == ("4", "6", 64)
    places = [f"base_model.model.encoder.blocks.{i}.{target}" for i in (0, 1) for target in LORA["lora_targets"]]
    layers = {f"{place}.lora_{part}.weight" for place in places for part in "AB"}
    assert {name for name in names if ".encoder." in name} == layers
    assert {name.split(".")[2] for name in names - layers} == {"head", "aux_heads"}


def test_a_base_that_moved_is_found_again_and_another_one_is_refused(base: Path, tmp_path: Path) -> None:
    model = _trained(base)
    save_adapters(model, tmp_path / "adapters", base)
    moved = base.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"its base must be there, got no {base}; give --base"):
        setr_fast.load(tmp_path / "adapters")
    assert torch.equal(_logits(setr_fast.load(tmp_path / "adapters", base=moved)), _logits(model))
    torch.manual_seed(9)
    _base().save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="must be the base that the adapters were trained on, got another by its"):
        setr_fast.load(tmp_path / "adapters", base=tmp_path / "other")
    with pytest.raises(CheckpointError, match="got another by its hash"):
        save_adapters(model, tmp_path / "new", tmp_path / "other")
    assert not (tmp_path / "new").exists()


def test_the_base_may_be_any_known_file_and_need_not_be_named(tmp_path: Path) -> None:
    plain = _base(conv_bias=True)
    base = write_file("setr", foreign_tensors("setr", plain.spec, plain.state_dict()), tmp_path)
    model = _trained(base)
    save_adapters(model, tmp_path / "adapters")
    with pytest.raises(CheckpointError, match="the base of its adapters must be given, got none"):
        setr_fast.load(tmp_path / "adapters")
    assert torch.equal(_logits(setr_fast.load(tmp_path / "adapters", base=base)), _logits(model))


def _of_peft(base: Path, folder: Path) -> Path:
    """Make what ``save_pretrained`` of peft leaves where no heads are trained: no config and no hash of ours."""
    save_adapters(_trained(base), folder, base)
    (folder / "config.json").unlink()
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if ".encoder." in name}, file, {"format": "pt"})
    return folder


def test_a_folder_of_peft_without_heads_is_read(base: Path, tmp_path: Path) -> None:
    folder = _of_peft(base, tmp_path / "adapters")
    got, plain = setr_fast.load(folder).state_dict(), setr_fast.load(base).state_dict()
    stored = load_file(folder / "adapter_model.safetensors")
    for name, tensor in got.items():
        layer, _, part = name.rpartition(".lora_")
        theirs = f"base_model.model.{layer}.lora_{part.upper()}.weight"
        assert torch.equal(tensor, stored[theirs] if layer else plain[name]), name
    layer = setr_fast.load(folder).encoder.blocks[1].mlp.fc2
    assert layer.scale == 6.0 / 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "must describe adapters of peft_type LORA"),
        ({"use_rslora": True}, "use_rslora must be off, got True; merge"),
        ({"alpha_pattern": {"qkv": 2}}, "alpha_pattern must be off"),
        ({"bias": "all"}, "bias must be off, got 'all'"),
        (None, "must be JSON"),
    ],
)
def test_settings_that_our_layers_do_not_have_are_refused(change: Any, words: str, base: Path, tmp_path: Path) -> None:
    folder = _of_peft(base, tmp_path / "adapters")
    file = folder / "adapter_config.json"
    file.write_text("{" if change is None else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=words) as caught:
        setr_fast.load(folder)
    assert "\n" not in str(caught.value)


def test_tensors_that_are_no_adapters_are_refused(base: Path, tmp_path: Path) -> None:
    folder = _of_peft(base, tmp_path / "adapters")
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.encoder.pos_embed": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"hold adapters of the encoder and heads, got base_model\.model\.enc"):
        setr_fast.load(folder)


def test_other_files_are_never_replaced_and_plain_models_have_nothing_to_save(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must have adapters, got none; train it with --model\.lora-rank"):
        save_adapters(_base(), tmp_path / "adapters")
    shutil.copytree(base, tmp_path / "mine")
    with pytest.raises(ConfigError, match="must be new, empty or a folder of adapters"):
        save_adapters(_trained(base), tmp_path / "mine", base)
    assert (tmp_path / "mine" / "model.safetensors").is_file()


def test_peft_itself_reads_ours_and_we_read_its(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (extra peers)")
    model = _trained(base, classes=3)
    save_adapters(model, tmp_path / "ours", base)
    theirs = peft.PeftModel.from_pretrained(setr_fast.load(base), tmp_path / "ours").eval()
    assert torch.equal(_logits(theirs.base_model.model), _logits(model))
    layers = r"encoder\.blocks\.\d+\.(attn\.proj|mlp\.fc1)"
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=layers, modules_to_save=["head"], init_lora_weights=False
    )
    fresh = peft.get_peft_model(setr_fast.load(base), config).eval()
    fresh.save_pretrained(tmp_path / "theirs")
    assert torch.equal(_logits(setr_fast.load(tmp_path / "theirs", base=base)), _logits(fresh.base_model.model))
