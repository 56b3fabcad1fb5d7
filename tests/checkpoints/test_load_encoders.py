"""Files that hold an encoder only: against recorded tokens, and as the start of a model with a fresh head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import setr_fast
from setr_fast.checkpoints.load import map_source
from setr_fast.checkpoints.read import read_checkpoint
from setr_fast.errors import ConfigError
from setr_fast.models.model import SegmentationModel
from setr_fast.nn.position import resize_positions
from tests.checkpoints.random_models import foreign_tensors, random_spec, random_state, write_file
from tests.models.recorded import Recorded, read_recorded


def _tokens(model: SegmentationModel, image: Tensor) -> list[Tensor]:
    """What enters the first block, and each block's output."""
    grid = model.grid(image)
    with torch.no_grad():
        x = model.encoder.embed(image, grid)
        outputs = [x]
        for block in model.encoder.blocks:
            x = block(x)
            outputs.append(x)
    return outputs


def test_google_encoders_match_timm_mmsegmentation_and_segmenter(shared: Path) -> None:
    recorded = read_recorded(shared / "fixtures/parity/jax-vit")
    path, image = recorded.folder / "vit.npz", recorded.tensor("input")
    model = setr_fast.load(path)
    assert model.spec.num_heads == recorded.config["heads"]  # told by the kernels' shape
    blocks = _tokens(model, image)[1:]
    for index, got in enumerate(blocks):
        torch.testing.assert_close(got, recorded.tensor(f"timm_block{index}"), rtol=0, atol=1e-5)
    with torch.no_grad():
        tokens = model.encoder.norm(blocks[-1])
    torch.testing.assert_close(tokens, recorded.tensor("timm_tokens"), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens, recorded.tensor("mmseg_tokens"), rtol=0, atol=1e-5)
    segmenter = read_recorded_npz(recorded, "segmenter.npz")
    model = setr_fast.load(path, layer_norm_eps=1e-5)
    with torch.no_grad():
        tokens = model.encoder.norm(_tokens(model, image)[-1])
    torch.testing.assert_close(tokens, segmenter["tokens"], rtol=0, atol=1e-5)
    assert torch.equal(model.encoder.pos_embed, segmenter["pos_embed"])


def read_recorded_npz(recorded: Recorded, name: str) -> dict[str, Tensor]:
    with np.load(recorded.folder / name) as data:
        return {key: torch.from_numpy(data[key]) for key in data.files}


@pytest.mark.parametrize("index", range(6))
def test_encoders_enter_official_setr_as_its_own_loading_does(index: int, shared: Path) -> None:
    recorded = read_recorded(shared / "fixtures/parity/setr-official-backbone-load")
    case = recorded.config["cases"][index]
    mla = case["model"] == "VIT_MLA"
    model = setr_fast.load(
        recorded.folder / case["weights"],
        num_heads=recorded.config["heads"],
        head="mla" if mla else "naive",
        num_classes=3,
        image_size=case["img_size"],
        taps=(0, 1, 2),
    )
    assert not any(name.startswith("encoder.norm") for name in model.state_dict())
    name = f"case{index}"
    torch.testing.assert_close(model.encoder.pos_embed, recorded.tensor(f"{name}.pos_embed"), rtol=0, atol=1e-6)
    assert torch.equal(model.encoder.cls_token, recorded.tensor(f"{name}.cls_token"))
    embedded, *blocks = _tokens(model, recorded.tensor(f"{name}.input"))
    for key, got in (("embedded", embedded), *((f"block{i}", block) for i, block in enumerate(blocks))):
        error = (got - recorded.tensor(f"{name}.{key}")).abs().max().item()
        assert error <= recorded.tolerance(key, name), (key, error)
    source = read_checkpoint(recorded.folder / case["weights"])
    account = map_source(source, num_heads=3).account
    heads = {key for key in case["unused_keys"] if key.startswith("head")}
    assert heads == account.dropped.keys()


def make(family: str, folder: Path, **changes: Any) -> tuple[Path, dict[str, Tensor]]:
    base = {"width": 48, "num_heads": 3, "depth": 4, "pos_grid": (3, 3), "image_size": (48, 48), "taps": (3,)}
    base |= {"patch_size": 16, "mlp_ratio": 2.0, "final_norm": True}
    spec = random_spec(family, "none", 0).replace(**(base | changes))
    state = random_state(spec, family)
    return write_file(family, foreign_tensors(family, spec, state), folder), state


ENCODERS = ["jax", "timm", "mmseg", "paddleseg", "paddlevit"]


@pytest.mark.parametrize("head", ["naive", "pup", "mla", "linear", "mask"])
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_takes_a_fresh_head(family: str, head: str, tmp_path: Path) -> None:
    path, state = make(family, tmp_path, **({} if family == "jax" else {"distilled": family in ("timm", "paddlevit")}))
    decoder = {"decoder_num_heads": 3} if head == "mask" else {}
    model = setr_fast.load(path, num_heads=3, head=head, num_classes=5, image_size=(64, 32), **decoder)
    setr = head in ("naive", "pup", "mla")
    assert (model.spec.pos_grid, model.spec.num_classes, model.training) == ((4, 2), 5, False)
    kept = 1 if setr or "encoder.dist_token" not in state else 2
    table = state["encoder.pos_embed"]
    table = torch.cat((table[:, :kept], table[:, -9:]), dim=1)
    cubic = family == "paddleseg" or (family == "mmseg" and not setr)
    expected = resize_positions(table, (3, 3), (4, 2), kept, "bicubic" if cubic else "bilinear")
    torch.testing.assert_close(model.encoder.pos_embed, expected, rtol=0, atol=0)
    assert model.spec.final_norm is not setr
    for name, tensor in model.encoder.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(tensor, state[f"encoder.{name}"]), name
    assert model.logits(torch.zeros(1, 3, 64, 32)).shape[1] == 5
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_an_encoder_alone_refuses_to_predict_and_can_be_saved(tmp_path: Path) -> None:
    path, state = make("timm", tmp_path)
    model = setr_fast.load(path, num_heads=3)
    with pytest.raises(ConfigError, match="must have a head to predict with"):
        model(torch.zeros(1, 3, 48, 48))
    model.save(tmp_path / "native")
    again = setr_fast.load(tmp_path / "native")
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    resized = setr_fast.load(path, num_heads=3, image_size=96)
    assert resized.spec.pos_grid == (6, 6)


@pytest.mark.parametrize("half", [{"head": "pup"}, {"num_classes": 4}])
def test_a_fresh_head_needs_its_kind_and_its_classes(half: dict[str, Any], tmp_path: Path) -> None:
    path, _ = make("timm", tmp_path)
    with pytest.raises(ConfigError, match="head and num_classes must be given together"):
        setr_fast.load(path, num_heads=3, **half)


def test_old_google_files_carry_a_prefix_and_padded_vectors(tmp_path: Path) -> None:
    path, state = make("jax", tmp_path)
    with np.load(path) as data:
        arrays = {f"opt/target/{name}": data[name] for name in data.files}
    key = "opt/target/Transformer/encoder_norm/scale"
    arrays[key] = arrays[key].reshape(1, 1, 1, -1)
    arrays["opt/target/head/kernel"] = np.zeros((48, 10), np.float32)
    arrays["opt/target/pre_logits/bias"] = np.zeros(48, np.float32)
    np.savez(path, **arrays)
    loaded = setr_fast.load(path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_old_timm_files_store_the_patch_projection_as_a_matrix(tmp_path: Path) -> None:
    path, state = make("timm", tmp_path, distilled=False)
    content = read_checkpoint(path).tensors
    content["patch_embed.proj.weight"] = content["patch_embed.proj.weight"].flatten(1).clone()
    content["head.weight"] = torch.zeros(10, 48)
    torch.save(content, tmp_path / "old.pth")
    loaded = setr_fast.load(tmp_path / "old.pth", num_heads=3)
    assert loaded.spec.patch_size == 16
    assert torch.equal(loaded.encoder.patch_embed.weight, state["encoder.patch_embed.weight"])
