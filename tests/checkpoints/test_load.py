"""What loading asks for, refuses and tells, beyond the recorded models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import setr_fast
from setr_fast.checkpoints.load import map_source
from setr_fast.checkpoints.read import read_checkpoint
from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.models.spec import ModelSpec
from tests.checkpoints.random_models import foreign_tensors, overrides_of, random_spec, random_state, write_file


def make(family: str, head: str, folder: Path, **changes: Any) -> tuple[Path, ModelSpec, dict[str, Tensor]]:
    """Write a small file; return its path, its spec and its tensors."""
    base = {"width": 48, "num_heads": 3, "depth": 4, "taps": (0, 1, 2, 3), "pos_grid": (2, 2), "image_size": (32, 32)}
    base |= {"patch_size": 16, "mlp_ratio": 2.0, "distilled": False}
    if head in ("linear", "mask", "none"):
        base["taps"] = (3,)
    spec = random_spec(family, head, 0).replace(**(base | changes))
    tensors = foreign_tensors(family, spec, random_state(spec, family))
    return write_file(family, tensors, folder), spec, tensors


# --- what must be asked for ----------------------------------------------------------------------------------


def test_all_that_the_weights_do_not_say_is_asked_for_at_once(tmp_path: Path) -> None:
    path, spec, _ = make("setr", "mla", tmp_path, pos_grid=(2, 3), image_size=(32, 48))
    with pytest.raises(ConfigError) as caught:
        setr_fast.load(path)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("model.pth", "num_heads (a width of 48 fits 1, 2, 3, 4, 6)", "taps: 4 block numbers of 0..3"):
        assert part in text
    assert "image_size (the position table has 6 patches: 32x48 or 48x32" in text
    assert setr_fast.load(path, **overrides_of(spec)).spec.pos_grid == (2, 3)


def test_heads_of_64_numbers_are_assumed_where_they_fit(tmp_path: Path) -> None:
    path, _, _ = make("mmseg", "linear", tmp_path, width=128, num_heads=2)
    assert setr_fast.load(path).spec.num_heads == 2
    assert setr_fast.load(path, num_heads=4).spec.num_heads == 4


@pytest.mark.parametrize(
    ("family", "head", "depth", "taps"),
    [
        ("setr", "pup", 24, (9, 14, 19, 23)),
        ("setr", "mla", 24, (5, 11, 17, 23)),
        ("setr", "pup", 12, (4, 7, 9, 11)),
        ("mmseg", "naive", 24, (9, 14, 19, 23)),
        ("paddleseg", "mla", 24, (5, 11, 17, 23)),
        ("paddlevit", "naive", 24, (9, 14, 19, 23)),
    ],
)
def test_published_taps_are_taken_where_there_is_one_answer(
    family: str, head: str, depth: int, taps: tuple[int, ...], tmp_path: Path
) -> None:
    path, spec, _ = make(family, head, tmp_path, depth=depth, width=12)
    assert setr_fast.load(path, num_heads=spec.num_heads).spec.taps == taps


def test_several_published_taps_are_named(tmp_path: Path) -> None:
    path, _, _ = make("setr", "mla", tmp_path, depth=12, width=12)
    with pytest.raises(ConfigError, match=r"known: \(2, 5, 8, 11\) or \(5, 7, 9, 11\)"):
        setr_fast.load(path, num_heads=3)
    assert setr_fast.load(path, num_heads=3, taps=(2, 5, 8, 11)).spec.taps == (2, 5, 8, 11)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": (0, 1, 2)}, "fitting taps: the heads in the file read 4 of them, not 3"),
        ({"taps": (0, 1, 2, 9)}, r"taps must increase and lie in 0\.\.3"),
        ({"image_size": 64}, "has 4 patches, which is not 64x64 pixels"),
        ({"num_heads": 5}, "num_heads must divide the width 48"),
        ({"num_head": 5}, "did you mean num_heads"),
        ({"align_corners": "yes"}, "align_corners: must be true or false"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path, spec, _ = make("setr", "mla", tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        setr_fast.load(path, **(overrides_of(spec) | changes))
    assert str(path) in str(caught.value)


def test_the_contract_overrides_reach_the_spec(tmp_path: Path) -> None:
    path, _, _ = make("mmseg", "mask", tmp_path, decoder_width=24, decoder_num_heads=3)
    with pytest.raises(ConfigError, match="decoder_num_heads"):
        setr_fast.load(path, num_heads=3)
    given = {"num_heads": 6, "decoder_num_heads": 2, "align_corners": True, "layer_norm_eps": 1e-5}
    found = setr_fast.load(path, image_size=(33, 47), **given).spec
    assert {name: getattr(found, name) for name in given} == given
    assert (found.image_size, found.pos_grid, found.final_norm_eps) == ((33, 47), (2, 2), 1e-5)


def test_a_window_may_differ_from_the_position_table(tmp_path: Path) -> None:
    path, spec, _ = make("paddleseg", "pup", tmp_path)
    found = setr_fast.load(path, num_heads=3, taps=spec.taps, image_size=49, pos_grid=(2, 2)).spec
    assert (found.image_size, found.pos_grid) == ((49, 49), (2, 2))


def test_names_and_colours_of_classes_come_from_the_file(tmp_path: Path) -> None:
    path, spec, tensors = make("setr", "naive", tmp_path, num_classes=2)
    palette = [[0, 1, 2], [3, 4, 255]]
    torch.save({"state_dict": tensors, "meta": {"CLASSES": ["road", "sky"], "PALETTE": palette}}, path)
    found = setr_fast.load(path, **overrides_of(spec)).spec
    assert found.class_names == ("road", "sky")
    assert found.palette == ((0, 1, 2), (3, 4, 255))
    torch.save({"state_dict": tensors, "meta": {"CLASSES": ["road"], "PALETTE": [[0, 1, 256], [1, 1, 1]]}}, path)
    found = setr_fast.load(path, **overrides_of(spec)).spec
    assert (found.class_names, found.palette) == (None, None)


# --- what is refused -----------------------------------------------------------------------------------------


def test_another_number_of_classes_is_no_override(tmp_path: Path) -> None:
    path, spec, _ = make("setr", "naive", tmp_path, num_classes=5)
    with pytest.raises(CheckpointError, match=r"num_classes must be 5, as the weights have it, got 7; .*--reinit-head"):
        setr_fast.load(path, num_classes=7, **overrides_of(spec))


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    path, spec, _ = make("setr", "naive", tmp_path)
    with pytest.raises(CheckpointError, match="must be a file of mmsegmentation, got official SETR; correct family"):
        setr_fast.load(path, family="mmseg", **overrides_of(spec))
    assert setr_fast.load(path, family="setr", **overrides_of(spec)).spec.name == "setr_naive"
    with pytest.raises(ConfigError, match="family must be setr, mmseg"):
        setr_fast.load(path, family="unheard")


def test_a_file_of_no_family_is_told_by_its_keys(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(
        CheckpointError, match=r"resnet\.pth: must be a checkpoint of .* got keys such as conv1\.weight"
    ):
        setr_fast.load(tmp_path / "resnet.pth")


def test_weights_of_ours_without_their_config_are_recognised(tmp_path: Path) -> None:
    path, spec, _ = make("segmenter", "linear", tmp_path)
    setr_fast.load(path, **overrides_of(spec)).save(tmp_path / "native")
    (tmp_path / "native" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    with pytest.raises(CheckpointError, match=r"without their config\.json; copy the whole folder"):
        setr_fast.load(tmp_path / "alone.safetensors")


def test_files_without_auxiliary_heads_load(tmp_path: Path) -> None:
    for family, head in (("setr", "pup"), ("mmseg", "mla"), ("paddleseg", "naive"), ("paddlevit", "mla")):
        path, spec, tensors = make(family, head, tmp_path)
        bare = {name: tensor for name, tensor in tensors.items() if "aux" not in name}
        write_file(family, bare, tmp_path)
        model = setr_fast.load(path, **overrides_of(spec))
        assert model.spec.aux_levels == ()
        assert len(model.all_logits(torch.zeros(1, 3, *spec.image_size))) == 1
        path.unlink()


def _rewrite(path: Path, tensors: dict[str, Tensor], **changes: Tensor | None) -> None:
    changed = {**tensors, **changes}
    torch.save({"state_dict": {name: value for name, value in changed.items() if value is not None}}, path)


_NORM = "backbone.blocks.1.norm1.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({_NORM: None}, f"{_NORM} is missing"),
        ({_NORM: torch.zeros(47)}, f"{_NORM} must be [48], got [47]"),
        ({_NORM: torch.zeros(48, dtype=torch.int64)}, f"{_NORM} must be floating point, got torch.int64"),
        ({_NORM: torch.full((48,), float("nan"))}, f"{_NORM} must be finite, got 48 NaN"),
        ({_NORM: torch.full((48,), float("inf"))}, f"{_NORM} must be finite, got 48 NaN or infinite"),
        (
            {_NORM: None, "backbone.blocks.1.norm1.wieght": torch.ones(48)},
            f"{_NORM} is missing; did you mean backbone.blocks.1.norm1.wieght",
        ),
        ({"backbone.blocks.1.extra": torch.zeros(3)}, "backbone.blocks.1.extra [3] is not known"),
        ({"backbone.pos_embed": None}, "weights must hold backbone.pos_embed, got none"),
        ({"backbone.pos_embed": torch.zeros(5, 48)}, "backbone.pos_embed must have 3 axes"),
        ({"decode_head.conv_1.bias": torch.zeros(1)}, "decode_head.conv_1.bias must be"),
    ],
)
def test_every_fault_of_the_keys_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path, spec, tensors = make("setr", "naive", tmp_path, num_classes=5)
    _rewrite(path, tensors, **changes)
    with pytest.raises(CheckpointError) as caught:
        setr_fast.load(path, **overrides_of(spec))
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 1500


def test_many_faults_are_counted(tmp_path: Path) -> None:
    path, spec, tensors = make("setr", "naive", tmp_path)
    _rewrite(path, tensors, **{f"extra.{i}": torch.zeros(1) for i in range(9)})
    with pytest.raises(CheckpointError, match=r"\(and 4 more\)"):
        setr_fast.load(path, **overrides_of(spec))


def test_copies_of_a_shared_module_must_be_equal(tmp_path: Path) -> None:
    path, spec, tensors = make("paddleseg", "mla", tmp_path)
    tensors["head.norms.2.weight"] = tensors["head.norms.2.weight"] + 1
    write_file("paddleseg", tensors, tmp_path)
    with pytest.raises(CheckpointError, match=r"head\.norms\.2\.weight must equal head\.norms\.0\.weight"):
        setr_fast.load(path, **overrides_of(spec))


@pytest.mark.parametrize("head", ["naive", "pup", "mla"])
def test_a_shared_module_may_be_listed_once(head: str, tmp_path: Path) -> None:
    path, spec, tensors = make("paddleseg", head, tmp_path)
    whole = setr_fast.load(path, **overrides_of(spec))
    want = whole.state_dict()
    groups = ("head.norms.", "head.feat_convs.", "head.aux_heads.", "head.aux_head_norms.")
    once = {k: v for k, v in tensors.items() if not k.startswith(tuple(f"{g}{n}." for g in groups for n in (1, 2, 3)))}
    assert len(once) < len(tensors)
    write_file("paddleseg", once, tmp_path)
    loaded = setr_fast.load(path, **overrides_of(spec))
    assert loaded.spec == whole.spec
    assert all(torch.equal(tensor, want[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [("wrong family", 3, "must be a file of mmsegmentation"), ("wrong classes", 3, "num_classes must be 5"),
     ("not finite", 3, "must be finite"), ("no heads", 2, "num_heads")],
)  # fmt: skip
def test_failures_carry_the_exit_code_of_their_kind(case: str, code: int, message: str, tmp_path: Path) -> None:
    path, _, tensors = make("setr", "naive", tmp_path, num_classes=5)
    call = "num_heads=3, taps=(0, 1, 2, 3)"
    if case == "wrong family":
        call += ", family='mmseg'"
    if case == "wrong classes":
        call += ", num_classes=7"
    if case == "not finite":
        _rewrite(path, tensors, **{_NORM: torch.full((48,), float("nan"))})
    if case == "no heads":
        call = "taps=(0, 1, 2, 3)"
    code_text = (
        "import sys, setr_fast\nfrom setr_fast.errors import SetrFastError\n"
        f"try:\n    setr_fast.load({str(path)!r}, {call})\n"
        "except SetrFastError as error:\n    print(error, file=sys.stderr)\n    sys.exit(error.exit_code)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(setr_fast.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code_text], capture_output=True, text=True, env=environment)
    assert (done.returncode, message in done.stderr, done.stderr.count("\n")) == (code, True, 1), done.stderr


# --- what variants are taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    path, spec, tensors = make("setr", "naive", tmp_path)
    torch.save({"state_dict": {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}}, path)
    state = setr_fast.load(path, **overrides_of(spec)).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}


def test_a_file_with_two_keys_for_one_storage_gives_two_parameters(tmp_path: Path) -> None:
    path, spec, tensors = make("setr", "naive", tmp_path)
    tensors["backbone.blocks.1.norm1.weight"] = tensors["backbone.blocks.0.norm1.weight"]
    torch.save({"state_dict": tensors}, path)
    state = setr_fast.load(path, **overrides_of(spec)).state_dict()
    one, two = (state[f"encoder.blocks.{i}.norm1.weight"] for i in (0, 1))
    assert torch.equal(one, two)
    assert one.data_ptr() != two.data_ptr()


def test_old_files_without_batch_counters_load(tmp_path: Path) -> None:
    path, spec, tensors = make("setr", "pup", tmp_path)
    _rewrite(path, {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")})
    mapped = map_source(read_checkpoint(path), **overrides_of(spec))
    assert mapped.state["head.stages.0.bn.num_batches_tracked"] == 0
    assert "old PyTorch" in mapped.account.filled["head.stages.0.bn.num_batches_tracked"]


def test_a_loaded_model_trains_and_saves(tmp_path: Path) -> None:
    path, spec, _ = make("mmseg", "naive", tmp_path)
    model = setr_fast.load(path, **overrides_of(spec)).train()
    model.loss(torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.uint8)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save(tmp_path / "native")
    again = setr_fast.load(tmp_path / "native")
    assert again.spec == model.spec
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_native_folder_is_told_from_files_of_others(tmp_path: Path) -> None:
    path, spec, _ = make("segmenter", "linear", tmp_path)
    model = setr_fast.load(path, **overrides_of(spec))
    model.save(tmp_path / "native")
    assert setr_fast.load(tmp_path / "native" / "model.safetensors").spec == model.spec
    with pytest.raises(CheckpointError, match="got a model folder of setr_fast; leave family out"):
        setr_fast.load(tmp_path / "native", family="mmseg")
    with pytest.raises(CheckpointError, match="must be a model folder"):
        setr_fast.load(path, family="native")


def test_the_file_may_be_replaced_while_the_model_lives(tmp_path: Path) -> None:
    path, spec, _ = make("setr", "naive", tmp_path)
    model = setr_fast.load(path, **overrides_of(spec))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path.write_bytes(b"")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    folder = tmp_path / "native"
    model.save(folder)
    again = setr_fast.load(folder)
    (folder / "model.safetensors").write_bytes(np.zeros(100, np.uint8).tobytes())
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())
