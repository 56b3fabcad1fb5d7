"""Files of published models, by the rules: as many numbers as the code bases' own models hold."""

from __future__ import annotations

import math

import pytest
import torch

from setr_fast.checkpoints.families import FAMILIES
from setr_fast.models.catalog import model_spec
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
CROPS = {768: 19, 512: 150, 480: 60}  # Cityscapes, ADE20K, Pascal Context


def total(family: str, spec: ModelSpec) -> int:
    """Parameters of a file, statistics of batch norms not counted."""
    known = FAMILIES[family]
    with torch.device("meta"):
        state = SegmentationModel(spec).state_dict()
    shapes = dict(known.dead(spec))
    for rule in known.rules(spec):
        shapes |= dict(zip(rule.sources, rule.source_shapes(state[rule.target]), strict=True))
    return sum(math.prod(shape) for key, shape in shapes.items() if not key.endswith(STATISTICS))


@pytest.mark.parametrize(
    ("name", "totals"),
    [
        ("setr_naive_vit_l16", (306_576_536, 305_669_296, 305_265_120)),
        ("setr_pup_vit_l16", (319_113_662, 318_307_292, 317_833_816)),
        ("setr_mla_vit_l16", (310_805_618, 310_568_836, 309_704_040)),
        ("setr_naive_vit_b16", (88_270_232, None, None)),
        ("setr_pup_deit_b16", (98_119_870, None, None)),
        ("setr_mla_deit_b16", (92_499_314, 92_590_212, 91_757_160)),
    ],
)
def test_official_setr_files_have_the_published_size(name: str, totals: tuple[int | None, ...]) -> None:
    for (crop, classes), expected in zip(CROPS.items(), totals, strict=True):
        if expected is not None:
            assert total("setr", model_spec(name, classes, crop)) == expected


@pytest.mark.parametrize(
    ("name", "classes", "crop", "encoder", "decoder"),
    [
        ("segmenter_mask_vit_t16", 150, 512, 5_876_392, 1_029_996),
        ("segmenter_mask_vit_s16", 150, 512, 22_368_616, 4_050_348),
        ("segmenter_mask_vit_b16", 150, 512, 87_203_560, 16_063_020),
        ("segmenter_linear_vit_b8", 150, 512, 89_120_488, 115_350),
        ("segmenter_mask_vit_l16", 150, 640, 305_764_328, 28_495_148),
        ("segmenter_mask_vit_l16", 60, 480, 305_047_528, 28_402_808),
        ("segmenter_mask_vit_l16", 19, 768, 306_485_224, 28_360_742),
    ],
)
def test_official_segmenter_files_have_the_published_size(
    name: str, classes: int, crop: int, encoder: int, decoder: int
) -> None:
    assert total("segmenter", model_spec(name, classes, crop)) == encoder + decoder
