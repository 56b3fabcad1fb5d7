"""Exported files in the hands of the code bases themselves, where they are installed (``pip install -e .[peers]``)."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from setr_fast.checkpoints.export import export, write_export
from setr_fast.checkpoints.load import assemble
from tests.checkpoints.peer_folders import arrays, assert_logits, folder_with_pictures, run_peer
from tests.checkpoints.random_models import random_spec, random_state

# Compiled operations that mmcv-lite lacks; mmsegmentation imports them for models that are not ours.
_OPS = ("CrissCrossAttention", "DeformConv2d", "ModulatedDeformConv2d", "MultiScaleDeformableAttention", "PSAMask")
_OPS += ("SAConv2d", "modulated_deform_conv2d", "point_sample", "sigmoid_focal_loss")


@pytest.fixture(scope="module")
def mmseg() -> Any:
    """The registry of mmsegmentation's models."""
    pytest.importorskip("mmseg", reason="mmsegmentation is not installed (extra: peers)")
    import importlib

    try:
        importlib.import_module("mmcv.ops")
    except ImportError:
        for name in ("mmcv.ops", "mmcv.ops.multi_scale_deform_attn"):
            module = types.ModuleType(name)
            module.__file__ = __file__
            for op in _OPS:
                setattr(module, op, type(op, (torch.nn.Module,), {}))
            sys.modules[name] = module
    importlib.import_module("mmseg.models")
    importlib.import_module("mmengine.registry").init_default_scope("mmseg")
    return importlib.import_module("mmseg.registry").MODELS


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("head", ["naive", "pup", "mla", "linear", "mask"])
def test_mmsegmentation_builds_loads_and_agrees(mmseg: Any, head: str, seed: int, tmp_path: Path) -> None:
    from mmengine.config import Config

    spec = random_spec("mmseg", head, seed).replace(mlp_ratio=4.0, decoder_mlp_ratio=4.0)
    state = random_state(spec, "mmseg", seed)
    write_export(export("mmseg", spec, state), tmp_path / "model.pth")
    peer = mmseg.build(Config.fromfile(str(tmp_path / "model.py")).model).eval().double()
    peer.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True)["state_dict"], strict=True)
    picture = torch.randn(2, 3, *spec.image_size, dtype=torch.float64)
    with torch.no_grad():
        theirs = peer.encode_decode(picture, [{"img_shape": spec.image_size}] * 2)
        ours = assemble(spec, state).double()(picture)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def paddleseg() -> str:
    """The interpreter that has PaddleSeg: this one, or the one that SETR_FAST_PADDLESEG names."""
    python = os.environ.get("SETR_FAST_PADDLESEG", sys.executable)
    if subprocess.run([python, "-c", "import paddleseg.models"], capture_output=True).returncode:
        pytest.skip(
            f"{python} cannot import paddleseg (extra: paddleseg); SETR_FAST_PADDLESEG names another interpreter"
        )
    return python


def test_paddleseg_builds_loads_and_agrees(paddleseg: str, tmp_path: Path) -> None:
    """Its tables are square and some widths fixed; all else is random. Its resizing rounds to float32."""
    models = {}
    for head in ("naive", "pup", "mla", "linear", "mask"):
        for seed in range(2):
            spec = random_spec("paddleseg", head, seed)
            side = max(spec.pos_grid) * spec.patch_size
            if head in ("naive", "pup"):
                spec = spec.replace(head_channels=256, aux_channels=256)
            spec = spec.replace(image_size=(side, side), pos_grid=(side // spec.patch_size,) * 2)
            state = random_state(spec, "paddleseg", seed)
            folder = folder_with_pictures(tmp_path, f"{head}_{seed}", (side, side), (side, 2 * side))
            made = export("paddleseg", spec, state)
            assert not made.limits
            write_export(made, folder / "model.pdparams")
            models[folder] = assemble(spec, state).double()
    run_peer(paddleseg, "paddleseg_forward.py", models)
    for folder, model in models.items():
        with torch.no_grad():
            found = {name: model(picture) for name, picture in arrays(folder, "pictures.npz").items()}
        assert_logits(found, folder, 2e-6)
