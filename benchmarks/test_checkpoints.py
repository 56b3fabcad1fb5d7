"""A row per file format: a whole ViT-L model loaded, beside reading its file from start to end.

Both by fresh processes, one after the other in turns, the file in the system's cache: the first load of a process, with
all that it imports after torch, and all the memory that it asks the system for, as reading does too.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import setr_fast
from benchmarks.harness import least
from setr_fast.checkpoints.certificate import tensors_sha256
from setr_fast.checkpoints.families import FAMILIES
from setr_fast.checkpoints.rules import export_tensors
from setr_fast.measure import quantiles, ratio
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.models.spec import ModelSpec

LOAD = (
    "import sys, time, torch, setr_fast\n"
    "def kib(name):\n"
    "    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name))\n"
    "before, began = kib('VmRSS'), time.perf_counter()\n"
    "model = setr_fast.load(sys.argv[1])\n"
    "print(time.perf_counter() - began, (kib('VmHWM') - before) * 1024)\n"
    "if len(sys.argv) > 2:\n"
    "    from setr_fast.checkpoints.certificate import tensors_sha256\n"
    "    print(tensors_sha256(model.state_dict()))\n"
)
READ = (
    "import sys, time\n"
    "began = time.perf_counter()\n"
    "content = open(sys.argv[1], 'rb').read()\n"
    "print(time.perf_counter() - began, len(content))\n"
)
ROUNDS = 7
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


def _run(code: str, folder: Path, *arguments: str) -> list[str]:
    """Run code in a fresh process whose imports are compiled already, as an installed package's are."""
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


@pytest.mark.full
@pytest.mark.parametrize("form", ["pth", "pdparams", "npz", "safetensors", "native"])
def test_loading_vit_l(form: str, benchmark: Any, record: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    path, file, digest = _written(form, tmp_path)
    size = file.stat().st_size
    assert _run(LOAD, tmp_path, str(path), "hash")[-1] == digest
    loads, reads, peaks = [], [], []
    for _ in range(least(ROUNDS)):
        seconds, peak = map(float, _run(LOAD, tmp_path, str(path)))
        loads.append(seconds)
        peaks.append(peak)
        seconds, length = map(float, _run(READ, tmp_path, str(file)))
        reads.append(seconds)
        assert length == size
    benchmark.pedantic(lambda: setr_fast.load(path), rounds=1)
    record(
        {
            "kind": "checkpoint",
            "form": form,
            "bytes": size,
            "first_load_seconds": quantiles(loads),
            "read_seconds": quantiles(reads),
            "load_over_read": ratio(loads, reads),
            "peak_over_size": max(peaks) / size,
        }
    )
