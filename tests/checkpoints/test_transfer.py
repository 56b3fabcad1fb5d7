"""Other classes, and encoders for training: taken on request, named, never silently."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import setr_fast
from setr_fast.checkpoints.load import assemble
from setr_fast.checkpoints.transfer import class_axes, reinit_classes, start_from
from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.nn.position import resize_positions
from tests.checkpoints.random_models import PAIRS, foreign_tensors, random_spec, random_state, write_file

HEADS = [(family, head) for family, head in PAIRS if head != "none"]
TINY = {"width": 24, "depth": 4, "num_heads": 3, "head_channels": 8}


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_only_entries_of_classes_start_fresh(family: str, head: str) -> None:
    spec = random_spec(family, head, 0).replace(num_classes=3, class_names=("a", "b", "c"))
    state = random_state(spec, family)
    names = ("z", "C ", "a", "y")
    new, changed, done = reinit_classes(spec, state, 4, names, match_names=True)
    assert (new.num_classes, new.class_names, done["kept"]) == (4, names, {"C ": 2, "a": 0})
    assemble(new, dict(changed))  # every shape fits
    axes = class_axes(spec)
    assert sorted(axes) == done["fresh"]
    assert any(name.startswith("head.") for name in axes)
    assert any(name.startswith("aux_heads.") for name in axes) == bool(spec.aux_levels)
    for name, tensor in state.items():
        if name not in axes:
            assert changed[name] is tensor
            continue
        for theirs, ours in ((2, 1), (0, 2)):
            assert torch.equal(changed[name].select(axes[name], ours), tensor.select(axes[name], theirs)), name


def test_classes_by_number_start_fresh_altogether() -> None:
    spec = random_spec("mmseg", "naive", 0).replace(num_classes=3)
    state = random_state(spec, "mmseg")
    new, changed, done = reinit_classes(spec, state, 3)
    assert new == spec
    assert done["kept"] == {}
    assert not torch.equal(changed["head.classifier.weight"], state["head.classifier.weight"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a", "b"), "class_names must be 3 names, got 2"),
        (None, "the new classes must have names"),
        (("x", "y", "z"), "must be in both lists, got none"),
        (("a", "A", "b"), "must differ, got 'a' more than once"),
    ],
)
def test_names_that_cannot_be_matched(names: tuple[str, ...] | None, words: str) -> None:
    spec = random_spec("mmseg", "naive", 0).replace(num_classes=3, class_names=("a", "b", "c"))
    with pytest.raises(ConfigError, match=words):
        reinit_classes(spec, random_state(spec, "mmseg"), 3, names, match_names=True)


def _model(head: str = "naive", classes: int = 5, **changes: object) -> SegmentationModel:
    name = f"segmenter_{head}_vit_t16" if head in ("linear", "mask") else f"setr_{head}_vit_t16"
    sizes = {key: value for key, value in TINY.items() if head not in ("linear", "mask") or key != "head_channels"}
    return create_model(name, num_classes=classes, image_size=(96, 64), **{**sizes, **changes})


ENCODERS = [("jax", None), ("timm", False), ("timm", True), ("mmseg", None), ("paddleseg", None), ("paddlevit", None)]


@pytest.mark.parametrize(("family", "distilled"), ENCODERS)
@pytest.mark.parametrize("head", ["pup", "mla", "linear", "mask"])
def test_an_encoder_of_every_family_starts_a_training(
    family: str, distilled: bool | None, head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = random_spec(family, "none", 0)
    spec = spec.replace(width=24, depth=4, num_heads=3, patch_size=16, mlp_ratio=4.0, taps=(3,), pos_grid=(3, 3))
    spec = spec.replace(final_norm=True, patch_bias=True, distilled=bool(distilled), image_size=(48, 48))
    state = random_state(spec, family)
    path = write_file(family, foreign_tensors(family, spec, state), tmp_path)
    model = _model(head)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        done = start_from(model, path)
    after = model.state_dict()
    for name in before:
        if not name.startswith("encoder."):
            assert torch.equal(after[name], before[name]), "heads start fresh"
            assert name in done["fresh"]
    for name, tensor in state.items():
        if name in after and name != "encoder.pos_embed":
            assert torch.equal(after[name], tensor), name
    leading = 2 if distilled else 1
    grid = resize_positions(state["encoder.pos_embed"][:, leading:], (3, 3), (6, 4), 0, "bilinear")
    assert torch.equal(after["encoder.pos_embed"][:, :1], state["encoder.pos_embed"][:, :1])
    torch.testing.assert_close(after["encoder.pos_embed"][:, 1:], grid)
    assert "3x3 resized to 6x4, bilinear" in done["changed"]["encoder.pos_embed"]
    assert "tensors start fresh" in caplog.text
    if head in ("pup", "mla"):
        assert any("final norm" in reason for reason in done["dropped"].values())


def test_a_whole_model_starts_one_of_the_same_kind(tmp_path: Path) -> None:
    spec = random_spec("mmseg", "linear", 1)
    state = random_state(spec, "mmseg", 1)
    path = write_file("mmseg", foreign_tensors("mmseg", spec, state), tmp_path)
    model = SegmentationModel(spec)
    assert start_from(model, path)["fresh"] == []
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_other_classes_need_to_be_asked_for(tmp_path: Path) -> None:
    saved = _model("naive", classes=5)
    saved.save(tmp_path / "m")
    model = _model("naive", classes=4)
    with pytest.raises(CheckpointError, match=r"does not fit this model .* set reinit_head"):
        start_from(model, tmp_path / "m")
    done = start_from(model, tmp_path / "m", reinit_head=True)
    assert "head.classifier.weight" in done["fresh"]
    assert "head.stages.0.conv.weight" not in done["fresh"]
    assert "head.classifier.weight" in done["dropped"]
    state = saved.state_dict()
    for name, tensor in model.state_dict().items():
        assert (name in done["fresh"]) != torch.equal(tensor, state[name]) or tensor.shape == (), name


def test_another_head_keeps_the_encoder(tmp_path: Path) -> None:
    spec = random_spec("setr", "mla", 0).replace(pos_grid=(2, 2), patch_size=16, image_size=(32, 32))
    spec = spec.replace(width=24, depth=4, num_heads=3, mlp_ratio=4.0, taps=(0, 1, 2, 3), stride=(21, 21))
    state = random_state(spec, "setr")
    path = write_file("setr", foreign_tensors("setr", spec, state), tmp_path)
    model = _model("pup")
    done = start_from(model, path, reinit_head=True)
    assert torch.equal(model.state_dict()["encoder.blocks.3.mlp.fc2.weight"], state["encoder.blocks.3.mlp.fc2.weight"])
    assert all(not name.startswith("encoder.") for name in done["fresh"])


def test_an_encoder_of_another_size_is_named(tmp_path: Path) -> None:
    spec = random_spec("timm", "none", 0).replace(width=24, num_heads=3, depth=2, patch_size=16, taps=(1,))
    path = write_file("timm", foreign_tensors("timm", spec, random_state(spec, "timm")), tmp_path)
    with pytest.raises(CheckpointError, match=r"depth 2 \(model: 4\)"):
        start_from(_model("pup"), path)


def test_a_training_starts_from_a_foreign_encoder(tmp_path: Path) -> None:
    from setr_fast.checkpoints.transfer import start_from

    spec = random_spec("timm", "none", 3).replace(width=24, depth=4, num_heads=3, patch_size=16, mlp_ratio=4.0)
    spec = spec.replace(taps=(3,))
    state = random_state(spec, "timm")
    path = write_file("timm", foreign_tensors("timm", spec, state), tmp_path)
    model = _model("mla")
    start_from(model, path)
    assert torch.equal(model.state_dict()["encoder.patch_embed.weight"], state["encoder.patch_embed.weight"])
    assert setr_fast.load(path, num_heads=3).spec.head == "none"
