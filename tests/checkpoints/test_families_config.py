"""What a config beside the weights decides, in the form of each code base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import setr_fast
from setr_fast.checkpoints.families import FAMILIES, Shapes
from setr_fast.checkpoints.families.family import Fields
from setr_fast.errors import CheckpointError, ConfigError
from tests.checkpoints.random_models import foreign_tensors, random_state, write_file
from tests.checkpoints.test_load import make
from tests.models.recorded import read_recorded


def _fields(family: str, head: str, config: dict[str, Any], folder: Path, **changes: Any) -> Fields:
    _, _, tensors = make(family, head, folder, **changes)
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, "file")
    known = FAMILIES[family]
    return known.read_config(config, known.find(shapes))


@pytest.mark.parametrize(
    "name",
    [f"setr-official-{head}" for head in ("naive", "pup", "mla")]
    + [f"mmseg-setr-{head}" for head in ("naive", "pup", "mla")]
    + ["mmseg-segmenter-linear", "mmseg-segmenter-mask", "mmseg-slide", "segmenter-mask", "segmenter-inference"],
)
def test_configs_of_recorded_models_say_what_the_overrides_say(name: str, shared: Path) -> None:
    recorded = read_recorded(shared / "fixtures/parity" / name)
    alone = setr_fast.load(recorded.folder / recorded.config["weights"])
    assert alone.spec == recorded.model().spec
    assert torch.equal(alone.encoder.pos_embed, recorded.model().encoder.pos_embed)


def test_official_setr_configs_give_taps_windows_and_statistics(tmp_path: Path) -> None:
    heads = [{"in_index": index, "num_conv": 2, "num_upsampe_layer": 2} for index in (0, 1, 3)]
    model = {
        "backbone": {"num_heads": 6, "img_size": 32},
        "decode_head": {"in_index": 3, "num_conv": 4, "num_upsampe_layer": 4, "align_corners": False},
        "auxiliary_head": heads,
    }
    config = {
        "model": model,
        "test_cfg": {"mode": "slide", "crop_size": (32, 32), "stride": (20, 20)},
        "img_norm_cfg": {"mean": [1, 2, 3], "std": [4, 5, 6], "to_rgb": True},
    }
    found = _fields("setr", "pup", config, tmp_path, aux_levels=(0, 1, 2))
    assert found["taps"] == (0, 1, 3)
    assert found["aux_levels"] == (0, 1, 2)
    assert (found["num_heads"], found["grid_size"], found["image_size"]) == (6, (32, 32), (32, 32))
    assert (found["inference_mode"], found["stride"]) == ("slide", (20, 20))
    assert (found["mean"], found["std"]) == ((1, 2, 3), (4, 5, 6))


def test_mmsegmentation_configs_give_scales_tokens_and_levels(tmp_path: Path) -> None:
    up = {"num_convs": 1, "up_scale": 2}
    model = {
        "backbone": {"with_cls_token": False, "out_indices": (0, 1, 2, -1), "interpolate_mode": "bicubic"},
        "decode_head": {"num_convs": 1, "up_scale": 8},
        "auxiliary_head": [{**up, "in_index": 2}, {**up, "in_index": 0}, {**up, "in_index": 1}],
    }
    found = _fields("mmseg", "naive", {"model": model}, tmp_path, aux_scales=(4,))
    assert found["taps"] == (0, 1, 2, 3)
    assert found["aux_levels"] == (2, 0, 1)
    assert (found["head_scales"], found["aux_scales"]) == ((8,), (2,))
    assert (found["class_token"], found["pos_resize"]) == ("drop", "bicubic")


def test_paddleseg_configs_give_heads_taps_and_windows(tmp_path: Path) -> None:
    path, _, _ = make("paddleseg", "naive", tmp_path, num_classes=4)
    (tmp_path / "model.yml").write_text(
        "model:\n"
        "  type: SegmentationTransformer\n"
        "  backbone: {type: VisionTransformer, num_heads: 6, img_size: 32}\n"
        "  backbone_indices: [0, 1, 2, 3]\n"
        "  head: naive\n"
        "  num_classes: 4\n"
        "  align_corners: False\n"
        "test_config: {is_slide: True, crop_size: [48, 64], stride: [20, 30]}\n"
    )
    spec = setr_fast.load(path).spec
    assert (spec.num_heads, spec.taps, spec.align_corners) == (6, (0, 1, 2, 3), False)
    assert (spec.image_size, spec.stride, spec.pos_grid) == ((64, 48), (30, 20), (2, 2))  # written width first
    assert setr_fast.load(path, num_heads=3, align_corners=True).spec.num_heads == 3


def test_paddlevit_configs_give_heads_taps_and_the_crop(tmp_path: Path) -> None:
    path, _, _ = make("paddlevit", "pup", tmp_path, num_classes=4, pos_grid=(2, 3), image_size=(32, 48))
    (tmp_path / "setr.yaml").write_text(
        "DATA: {CROP_SIZE: [32, 48], NUM_CLASSES: 4}\n"
        "MODEL:\n"
        "  ENCODER: {TYPE: ViT, OUT_INDICES: [0, 1, 2, 3]}\n"
        "  TRANS: {NUM_HEADS: 6, KEEP_CLS_TOKEN: True}\n"
        "VAL: {STRIDE_SIZE: [20, 10]}\n"
    )
    spec = setr_fast.load(path).spec
    assert (spec.num_heads, spec.taps, spec.class_token) == (6, (0, 1, 2, 3), "keep")
    assert (spec.image_size, spec.pos_grid, spec.stride) == ((32, 48), (2, 3), (10, 20))


def test_a_config_of_other_classes_is_no_silent_guess(tmp_path: Path) -> None:
    path, _, _ = make("paddlevit", "pup", tmp_path, num_classes=4)
    (tmp_path / "setr.yaml").write_text("DATA: {NUM_CLASSES: 19}\nMODEL: {TRANS: {NUM_HEADS: 6}}\n")
    with pytest.raises(CheckpointError, match="num_classes must agree between weights and config, got 4"):
        setr_fast.load(path, taps=(0, 1, 2, 3))
    assert setr_fast.load(path, taps=(0, 1, 2, 3), num_classes=4).spec.num_heads == 6


def test_encoders_of_unusual_heads_are_not_guessed(tmp_path: Path) -> None:
    _, spec, _ = make("timm", "none", tmp_path, distilled=False)
    huge = spec.replace(width=1280, num_heads=16, depth=1, taps=(0,), patch_size=1, mlp_ratio=0.25)
    path = write_file("timm", foreign_tensors("timm", huge, random_state(huge, "timm")), tmp_path)
    with pytest.raises(ConfigError, match="ViT-H has 16"):
        setr_fast.load(path)
    assert setr_fast.load(path, num_heads=16).spec.num_heads == 16


def test_the_old_small_encoder_is_refused_for_its_scale(tmp_path: Path) -> None:
    _, spec, _ = make("timm", "none", tmp_path, distilled=False)
    old = spec.replace(width=768, num_heads=8, depth=8, taps=(7,), patch_size=1, mlp_ratio=3.0)
    tensors = foreign_tensors("timm", old, random_state(old, "timm"))
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, "vit.pth")
    with pytest.raises(CheckpointError, match="old small ViT"):
        FAMILIES["timm"].find(shapes)


@pytest.mark.parametrize(
    ("family", "config"), [("mmseg", {"num_convs": 1, "up_scale": 4, "in_index": 2}), ("setr", {})]
)
def test_one_auxiliary_head_may_stand_without_a_list(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    """mmcv's code bases then build no list of modules, and the keys have no number."""
    changes: dict[str, Any] = {"aux_scales": (4,)} if family == "mmseg" else {}
    path, spec, tensors = make(family, "naive", tmp_path, aux_levels=(0,), **changes)
    want = setr_fast.load(path, num_heads=3, taps=spec.taps)
    bare = {name.replace("auxiliary_head.0.", "auxiliary_head."): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    torch.save({"state_dict": bare}, path)
    loaded = setr_fast.load(path, num_heads=3, taps=spec.taps)
    assert loaded.spec == want.spec
    assert all(torch.equal(tensor, want.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    if family == "mmseg":
        head = "dict(num_convs=1, up_scale=4, in_index=2, loss_decode=dict(loss_weight=0.25))"
        backbone = "dict(num_heads=3, out_indices=(0, 1, 2, 3))"
        text = f"model = dict(backbone={backbone}, decode_head=dict(), auxiliary_head={head})"
        path.with_suffix(".py").write_text(text)
        found = setr_fast.load(path).spec
        assert (found.aux_levels, found.aux_scales, found.aux_weight) == ((2,), (4,), 0.25)
    torch.save({"state_dict": tensors | bare}, path)
    with pytest.raises(CheckpointError, match=r"auxiliary_head\.norm\.weight .* is not known"):
        setr_fast.load(path, num_heads=3, taps=spec.taps)
