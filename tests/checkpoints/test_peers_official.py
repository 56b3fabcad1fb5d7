"""Files in the hands of official Segmenter and official SETR, where somebody has cloned them: both directions.

Neither is in any registry. ``SETR_FAST_SEGMENTER_REPO`` and ``SETR_FAST_SETR_REPO`` name checkouts,
``SETR_FAST_PEER_PYTHON`` an interpreter that has what they import (torch, and timm, einops, PyYAML; mmcv 1.2.7, yapf
below 0.40), if it is not this one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import setr_fast
from setr_fast.checkpoints.configs import read_config
from setr_fast.checkpoints.export import export, write_export
from setr_fast.checkpoints.load import assemble
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from tests.checkpoints.peer_folders import arrays, assert_logits, folder_with_pictures, run_peer
from tests.checkpoints.random_models import random_spec, random_state

TOLERANCE = 1e-12  # of the largest logit, in float64
PYTHON = os.environ.get("SETR_FAST_PEER_PYTHON", sys.executable)


def _repository(variable: str) -> Path:
    where = os.environ.get(variable)
    if not where:
        pytest.skip(f"{variable} names no checkout of the code base, which is in no registry")
    return Path(where)


@pytest.fixture(scope="module")
def segmenter() -> Path:
    """A checkout of rstrudel/segmenter."""
    return _repository("SETR_FAST_SEGMENTER_REPO")


@pytest.fixture(scope="module")
def setr() -> Path:
    """A checkout of fudan-zvg/SETR."""
    return _repository("SETR_FAST_SETR_REPO")


# --- official Segmenter ----------------------------------------------------------------------------------------------


def _segmenter_spec(head: str, seed: int) -> ModelSpec:
    """Decoders and MLPs are as wide as the code base makes them; all else is random."""
    spec = random_spec("segmenter", head, seed).replace(mlp_ratio=4.0, decoder_mlp_ratio=4.0)
    if head == "mask":
        spec = spec.replace(width=spec.decoder_width, num_heads=2)
    return spec


def _assert_segmenter(model: SegmentationModel, folder: Path) -> None:
    with torch.no_grad():
        found = {name: model.double()(picture) for name, picture in arrays(folder, "pictures.npz").items()}
    assert_logits(found, folder, TOLERANCE)


def test_segmenter_loads_what_is_written_for_it_and_agrees(segmenter: Path, tmp_path: Path) -> None:
    """Pictures of the training size, of another, and of one that is no multiple of the patch."""
    models = {}
    for head in ("linear", "mask"):
        for seed in range(4):
            spec = _segmenter_spec(head, seed)
            h, w = spec.image_size
            folder = folder_with_pictures(
                tmp_path, f"{head}_{seed}", (h, w), (h + spec.patch_size, w), (2 * h - 1, w + 3)
            )
            state = random_state(spec, "segmenter", seed)
            write_export(export("segmenter", spec, state), folder / "checkpoint.pth")
            models[folder] = assemble(spec, state)
    run_peer(PYTHON, "segmenter_forward.py", [segmenter, *models])
    for folder, model in models.items():
        _assert_segmenter(model, folder)


def test_what_segmenter_saves_loads_and_agrees(segmenter: Path, tmp_path: Path) -> None:
    folders = []
    for seed in range(6):
        draw = random.Random(f"segmenter {seed}")
        patch, heads, distilled = draw.choice((4, 8, 16)), draw.choice((1, 2)), seed % 2 == 1
        size = (patch * draw.randint(2, 5), patch * draw.randint(2, 5))
        decoder: dict[str, Any] = {"name": "linear"}
        if seed >= 2:
            decoder = {
                "name": "mask_transformer",
                "drop_path_rate": 0.0,
                "dropout": 0.1,
                "n_layers": draw.randint(1, 3),
            }
        net = {"image_size": size, "patch_size": patch, "d_model": 64 * heads, "n_heads": heads, "n_cls": 3 + seed}
        net |= {"n_layers": draw.randint(1, 4), "normalization": "deit" if distilled else "vit", "decoder": decoder}
        net |= {"distilled": distilled, "backbone": "random", "dropout": 0.0, "drop_path_rate": 0.1}
        if not distilled:  # as the configs of ViT-L leave it
            del net["distilled"]
        folder = folder_with_pictures(tmp_path, f"saved_{seed}", size, (size[0] + 1, 2 * size[1] - 3))
        (folder / "build.json").write_text(json.dumps(net))
        folders.append(folder)
    run_peer(PYTHON, "segmenter_forward.py", [segmenter, *folders])
    for folder in folders:
        _assert_segmenter(setr_fast.load(folder), folder)


# --- official SETR ---------------------------------------------------------------------------------------------------


def _setr_spec(head: str, seed: int) -> ModelSpec:
    """Pictures are square and heads of the published widths, as the code base fixes them; all else is random."""
    spec = random_spec("setr", head, seed)
    side = max(spec.pos_grid)
    size = (side * spec.patch_size,) * 2
    stride = (max(size[0] * 2 // 3, 1),) * 2
    return spec.replace(pos_grid=(side, side), image_size=size, stride=stride, head_channels=256, aux_channels=256)


def _assert_setr(model: SegmentationModel, folder: Path) -> None:
    """Main and auxiliary logits at the picture's size."""
    found = {}
    with torch.no_grad():
        for name, picture in arrays(folder, "pictures.npz").items():
            low = model.double().all_logits(picture)
            aux = [F.interpolate(logits, picture.shape[-2:], mode="bilinear") for logits in low[1:]]
            found |= {f"{name}_{index}": logits for index, logits in enumerate([model(picture), *aux])}
    assert_logits(found, folder, TOLERANCE)


def test_official_setr_loads_what_is_written_for_it_and_agrees(setr: Path, tmp_path: Path) -> None:
    models = {}
    for head in ("naive", "pup", "mla"):
        for seed in range(3):
            spec = _setr_spec(head, seed)
            folder = folder_with_pictures(tmp_path, f"{head}_{seed}", spec.image_size)
            state = random_state(spec, "setr", seed)
            write_export(export("setr", spec, state), folder / "model.pth")
            models[folder] = assemble(spec, state)
    run_peer(PYTHON, "setr_forward.py", [setr, *models])
    for folder, model in models.items():
        _assert_setr(model, folder)


PUBLISHED = [
    *(f"SETR_{head}_768x768_40k_cityscapes_bs_8" for head in ("Naive", "PUP", "MLA", "Naive_Base", "MLA_DeiT")),
    *("SETR_PUP_DeiT_768x768_80k_cityscapes_bs_8_MS", "SETR_Naive_512x512_160k_ade20k_bs_16"),
    *("SETR_PUP_480x480_80k_pascal_context_bs_16_MS", "SETR_MLA_512x512_160k_ade20k_bs_8"),
]


def _shrunk(values: dict[str, Any], side: int) -> dict[str, Any]:
    """What makes the model of a published config small: narrow, for small pictures; depth, taps and heads stay."""
    model = values["model"]
    sizes: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "img_size": side, "random_init": True}

    def head(entry: dict[str, Any]) -> dict[str, Any]:
        return {"img_size": side} | ({"embed_dim": 16} if "embed_dim" in entry else {})

    aux = [entry | head(entry) for entry in model["auxiliary_head"]]
    return {"backbone": sizes, "decode_head": head(model["decode_head"]), "auxiliary_head": aux}


def test_what_official_setr_saves_of_its_published_configs_loads_and_agrees(setr: Path, tmp_path: Path) -> None:
    """With the config beside the file, inheriting from the published one, and with the text inside the file alone."""
    folders = []
    for name in PUBLISHED:
        published = setr / f"configs/SETR/{name}.py"
        config = read_config(published)
        assert config is not None
        folder = folder_with_pictures(tmp_path, name, (48, 48))
        test = {"crop_size": (48, 48), "stride": (32, 32)}
        text = f"_base_ = {str(published)!r}\nmodel = {_shrunk(config.values, 48)}\ntest_cfg = {test}\n"
        (folder / "model.py").write_text(text)
        folders.append(folder)
    run_peer(PYTHON, "setr_forward.py", [setr, *folders])
    for folder in folders:
        beside = setr_fast.load(folder / "model.pth")
        alone = tmp_path / "alone"
        alone.mkdir()
        shutil.copy(folder / "model.pth", alone)
        inside = setr_fast.load(alone)
        shutil.rmtree(alone)
        assert inside.spec == beside.spec
        assert inside.spec.class_names is not None
        _assert_setr(inside, folder)
