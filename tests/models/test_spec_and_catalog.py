"""Specs and the catalog: names, defaults, overrides, validation, and that none of it needs torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from setr_fast.errors import ConfigError
from setr_fast.models.catalog import list_models, model_spec, spread_taps
from setr_fast.models.model import create_model
from setr_fast.models.spec import ModelSpec


def test_specs_and_catalog_do_not_import_torch() -> None:
    code = "import sys, setr_fast.models.spec, setr_fast.models.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_catalog_has_every_promised_name() -> None:
    setr = {f"setr_{h}_{e}" for h in ("naive", "pup", "mla") for e in ("vit_l16", "vit_b16", "deit_b16", "vit_t16")}
    encoders = ("vit_t16", "vit_s16", "vit_b16", "vit_l16", "vit_b8", "deit_b16")
    segmenter = {f"segmenter_{h}_{e}" for h in ("linear", "mask") for e in encoders}
    assert setr | segmenter <= set(list_models())
    assert len(list_models()) == len(set(list_models()))


@pytest.mark.parametrize("name", list_models())
def test_every_spec_survives_json(name: str) -> None:
    spec = model_spec(name, 19, image_size=(768, 512), class_names=[f"c{i}" for i in range(19)])
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.name == name
    assert spec.pos_grid == (768 // spec.patch_size, 512 // spec.patch_size)
    assert spec.stride == (512, 341)


@pytest.mark.parametrize(
    ("name", "taps", "aux"),
    [
        ("setr_naive_vit_l16", (9, 14, 19, 23), (0, 1, 2)),
        ("setr_pup_vit_l16", (9, 14, 19, 23), (0, 1, 2, 3)),
        ("setr_mla_vit_l16", (5, 11, 17, 23), (0, 1, 2, 3)),
        ("setr_naive_vit_b16", (2, 5, 8, 11), (0, 1, 2)),
        ("setr_pup_deit_b16", (4, 7, 9, 11), (0, 1, 2, 3)),
        ("setr_mla_deit_b16", (2, 5, 8, 11), (0, 1, 2, 3)),
        ("segmenter_mask_vit_l16", (23,), ()),
    ],
)
def test_published_taps(name: str, taps: tuple[int, ...], aux: tuple[int, ...]) -> None:
    spec = model_spec(name, 19)
    assert (spec.taps, spec.aux_levels) == (taps, aux)


@pytest.mark.parametrize(("depth", "taps"), [(4, (0, 1, 2, 3)), (6, (1, 2, 4, 5)), (8, (1, 3, 5, 7)), (2, (0, 1))])
def test_other_depths_spread_the_taps(depth: int, taps: tuple[int, ...]) -> None:
    assert spread_taps(depth, 4) == taps
    spec = model_spec("setr_mla_vit_t16", 3, depth=depth)
    assert spec.taps == taps
    assert spec.aux_levels == tuple(range(len(taps)))
    assert model_spec("segmenter_linear_vit_t16", 3, depth=depth).taps == (depth - 1,)


def test_fields_follow_from_others_unless_given() -> None:
    spec = model_spec("setr_mla_vit_l16", 3, width=128, head_channels=64, patch_size=8, image_size=64)
    assert (spec.num_heads, spec.branch_channels, spec.aux_channels, spec.pos_grid) == (2, 32, 64, (8, 8))
    spec = model_spec("segmenter_mask_vit_l16", 3, width=128, decoder_width=256, num_heads=8)
    assert (spec.num_heads, spec.decoder_num_heads) == (8, 4)
    spec = model_spec("setr_naive_vit_b16", 104, taps=[5, 7, 9, 11])
    assert (spec.taps, spec.aux_levels) == ((5, 7, 9, 11), (0, 1, 2))


def test_epsilons_and_statistics_are_the_official_ones() -> None:
    setr, segmenter = model_spec("setr_pup_vit_l16", 19), model_spec("segmenter_mask_vit_b16", 19)
    assert (setr.layer_norm_eps, setr.head_norm_eps, setr.loss_averaging) == (1e-6, 1e-6, "all")
    eps = (segmenter.layer_norm_eps, segmenter.final_norm_eps, segmenter.decoder_layer_norm_eps)
    assert (*eps, segmenter.decoder_norm_eps, segmenter.loss_averaging) == (1e-5, 1e-5, 1e-5, 1e-5, "valid")
    assert setr.mean == (123.675, 116.28, 103.53)
    assert segmenter.std == (127.5, 127.5, 127.5)
    assert model_spec("segmenter_mask_deit_b16", 19).std == (58.40, 57.12, 57.38)
    assert model_spec("segmenter_mask_deit_b16", 19).distilled
    assert not model_spec("setr_mla_deit_b16", 19).distilled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "setr_pup_vit_116"}, "did you mean setr_pup_vit_t16"),
        ({"drop_paths": 0.1}, "did you mean drop_path"),
        ({"num_heads": 5}, "num_heads must divide the width 192, got 5"),
        ({"width": "192"}, "width: must be a whole number, got '192'"),
        ({"depth": 2.5}, "depth: must be a whole number, got 2.5"),
        ({"head_kernel": 2}, "head_kernel: must be 1 or 3, got 2"),
        ({"class_token": True}, "class_token: must be keep or drop"),
        ({"conv_bias": 1}, "conv_bias: must be true or false"),
        ({"taps": (3, 2)}, "taps must increase"),
        ({"taps": (3, 12)}, "taps must increase and lie in 0..11"),
        ({"aux_levels": (4,)}, "aux_levels must be positions in taps"),
        ({"mean": (1.0, 2.0)}, "mean and std must be 3 numbers each, one per channel, got 2 and 3"),
        ({"mean": (float("nan"),) * 3}, "must be a finite number"),
        ({"num_classes": 0}, "num_classes must lie in 1..65535, got 0"),
        ({"class_names": ("a",)}, "class_names must be 3 names, got 1"),
        ({"palette": ((300, 0, 0),) * 3}, "palette must be 3 colours"),
        ({"ignore_index": 2}, "ignore_index must not be a class"),
        ({"image_size": 0}, "image_size must be one or two positive whole numbers, got 0"),
        ({"image_size": (1, 2, 3)}, "image_size must be one or two"),
        ({"patch_size": 0}, "patch_size must lie in 1..1024, got 0"),
        ({"fit": "floor"}, "resize_to must be input where fit is floor"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must lie in"),
    ],
)
def test_wrong_options_are_named_with_what_they_must_be(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_spec(**({"name": "setr_pup_vit_t16", "num_classes": 3} | arguments))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_spec_from_a_dictionary_is_strict() -> None:
    values = model_spec("setr_pup_vit_t16", 3).to_dict()
    with pytest.raises(ConfigError, match="head_chanels; did you mean head_channels"):
        ModelSpec.from_dict(values | {"head_chanels": 3})
    with pytest.raises(ConfigError, match="num_classes must be given"):
        ModelSpec.from_dict({k: v for k, v in values.items() if k != "num_classes"})


# Totals of the published files (spec/checkpoints.md (a)), the dead classifiers of every head not counted.
TOTALS = [
    ("setr_naive_vit_l16", 19, 768, 306_576_536 - 38_988, 305_728_019),
    ("setr_naive_vit_l16", 150, 512, 305_669_296 - 307_800, 304_450_966),
    ("setr_naive_vit_l16", 60, 480, 305_265_120 - 123_120, 304_300_860),
    ("setr_pup_vit_l16", 19, 768, 319_113_662 - 48_735, 309_596_947),
    ("setr_pup_vit_l16", 150, 512, 318_307_292 - 384_750, 308_319_894),
    ("setr_pup_vit_l16", 60, 480, 317_833_816 - 153_900, 308_169_788),
    ("setr_mla_vit_l16", 19, 768, 310_805_618 - 48_735, 310_737_427),
    ("setr_mla_vit_l16", 150, 512, 310_568_836 - 384_750, 310_030_486),
    ("setr_mla_vit_l16", 60, 480, 309_704_040 - 153_900, 309_488_700),
    ("setr_naive_vit_b16", 19, 768, 88_270_232 - 38_988, None),
    ("setr_pup_deit_b16", 19, 768, 98_119_870 - 48_735, None),
    ("setr_mla_deit_b16", 150, 512, 92_590_212 - 384_750, None),
]
# Official Segmenter: encoder without the dead ImageNet classifier, decoder.
SEGMENTER_TOTALS = [
    ("segmenter_mask_vit_t16", 150, 512, 5_876_392 - 193_000 + 1_029_996),
    ("segmenter_mask_vit_s16", 150, 512, 22_368_616 - 385_000 + 4_050_348),
    ("segmenter_mask_vit_b16", 150, 512, 87_203_560 - 769_000 + 16_063_020),
    ("segmenter_linear_vit_b8", 150, 512, 89_120_488 - 769_000 + 115_350),
    ("segmenter_mask_vit_l16", 150, 640, 305_764_328 - 1_025_000 + 28_495_148),
    ("segmenter_mask_vit_l16", 19, 768, 306_485_224 - 1_025_000 + 28_360_742),
    ("segmenter_mask_deit_b16", 150, 512, 87_974_096 - 2 * 769_000 + 16_063_020),
]


def _count(name: str, classes: int, size: int, **overrides: object) -> int:
    with torch.device("meta"):
        model = create_model(name, classes, image_size=size, **overrides)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "classes", "size", "total", "live"), TOTALS)
def test_setr_has_the_published_number_of_parameters(
    name: str, classes: int, size: int, total: int, live: int | None
) -> None:
    assert _count(name, classes, size) == total
    if live is not None:
        assert _count(name, classes, size, aux_levels=()) == live


@pytest.mark.parametrize(("name", "classes", "size", "total"), SEGMENTER_TOTALS)
def test_segmenter_has_the_published_number_of_parameters(name: str, classes: int, size: int, total: int) -> None:
    assert _count(name, classes, size) == total
