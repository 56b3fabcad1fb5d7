"""A row per file format: a whole ViT-L model loaded, beside reading its file from start to end."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import setr_fast
from benchmarks.harness import interleaved
from setr_fast.checkpoints.certificate import tensors_sha256
from setr_fast.checkpoints.families import FAMILIES
from setr_fast.checkpoints.rules import export_tensors
from setr_fast.measure import quantiles, ratio
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.models.spec import ModelSpec

PEAK = (
    "import sys, setr_fast\n"
    "from setr_fast.checkpoints import load\n"
    "def kib(name):\n"
    "    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name))\n"
    "before = kib('VmRSS')\n"
    "model = setr_fast.load(sys.argv[1])\n"
    "print((kib('VmHWM') - before) * 1024)\n"
)
ENCODER = ModelSpec(
    **{"name": "vit_l16", "head": "none", "num_classes": 1, "image_size": (768, 768), "pos_grid": (48, 48)},
    **{"patch_size": 16, "width": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0, "taps": (23,)},
    **{"aux_levels": (), "final_norm": True},
)


def _written(form: str, folder: Path) -> tuple[Path, Path, str]:
    """Write a random ViT-L; return what is loaded, the file that holds the bytes, and the tensors' hash."""
    if form in ("npz", "safetensors"):
        state = SegmentationModel(ENCODER).state_dict()
        tensors = export_tensors(FAMILIES["jax" if form == "npz" else "timm"].rules(ENCODER), state)
        path = folder / f"vit.{form}"
        if form == "npz":
            np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
        else:
            save_file(tensors, path)
        return path, path, tensors_sha256(state)
    model = create_model("setr_naive_vit_l16", num_classes=19, image_size=768)
    digest = tensors_sha256(model.state_dict())
    if form == "native":
        model.save(folder / "native")
        return folder / "native", folder / "native" / "model.safetensors", digest
    path = folder / f"setr.{form}"
    if form == "pth":
        torch.save({"state_dict": export_tensors(FAMILIES["setr"].rules(model.spec), model.state_dict())}, path)
    else:
        spec = model.spec.replace(class_token="drop")
        arrays = export_tensors(FAMILIES["paddlevit"].rules(spec), model.state_dict())
        with path.open("wb") as file:
            pickle.dump({name: tensor.numpy() for name, tensor in arrays.items()}, file, protocol=4)
    return path, path, digest


@pytest.mark.full
@pytest.mark.parametrize("form", ["pth", "pdparams", "npz", "safetensors", "native"])
def test_loading_vit_l(form: str, benchmark: Any, record: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    path, file, digest = _written(form, tmp_path)
    size = file.stat().st_size
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)

    def read() -> int:
        with file.open("rb") as opened:
            return len(opened.read())

    read()
    began = time.perf_counter()
    loaded = setr_fast.load(path)
    first = time.perf_counter() - began
    assert tensors_sha256(loaded.state_dict()) == digest
    del loaded
    times = interleaved({"read": read, "load": lambda: setr_fast.load(path)}, rounds=7, seconds=30)
    benchmark.pedantic(lambda: setr_fast.load(path), rounds=1)
    record(
        {
            "kind": "checkpoint",
            "form": form,
            "bytes": size,
            "first_load_seconds": first,
            "load_seconds": quantiles(times["load"]),
            "read_seconds": quantiles(times["read"]),
            "load_over_read": ratio(times["load"], times["read"]),
            "peak_over_size": int(done.stdout) / size,
        }
    )
