"""A row per file format: a whole ViT-L model loaded, beside reading its file from start to end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import setr_fast
from benchmarks.harness import interleaved
from setr_fast.checkpoints.families import FAMILIES
from setr_fast.checkpoints.rules import export_tensors
from setr_fast.measure import quantiles, ratio
from setr_fast.models.model import SegmentationModel, create_model

PEAK = (
    "import sys, setr_fast\n"
    "from setr_fast.checkpoints import load\n"
    "def kib(name):\n"
    "    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name))\n"
    "before = kib('VmRSS')\n"
    "model = setr_fast.load(sys.argv[1])\n"
    "print((kib('VmHWM') - before) * 1024)\n"
)


def _file(form: str, model: SegmentationModel, folder: Path) -> tuple[Path, Path]:
    """Write the model; return what is loaded and the file that holds the bytes."""
    if form == "native":
        model.save(folder / "native")
        return folder / "native", folder / "native" / "model.safetensors"
    path = folder / "setr.pth"
    torch.save({"state_dict": export_tensors(FAMILIES["setr"].rules(model.spec), model.state_dict())}, path)
    return path, path


@pytest.mark.full
@pytest.mark.parametrize("form", ["native", "setr"])
def test_loading_vit_l(form: str, benchmark: Any, record: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    model = create_model("setr_pup_vit_l16", num_classes=19, image_size=768)
    path, file = _file(form, model, tmp_path)
    want = model.state_dict()
    assert all(torch.equal(tensor, want[name]) for name, tensor in setr_fast.load(path).state_dict().items())
    del model, want

    def read() -> int:
        with file.open("rb") as opened:
            return len(opened.read())

    times = interleaved({"read": read, "load": lambda: setr_fast.load(path)}, rounds=5, seconds=30)
    size = file.stat().st_size
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    benchmark.pedantic(lambda: setr_fast.load(path), rounds=1)
    record(
        {
            "kind": "checkpoint",
            "form": form,
            "bytes": size,
            "load_seconds": quantiles(times["load"]),
            "read_seconds": quantiles(times["read"]),
            "load_over_read": ratio(times["load"], times["read"]),
            "peak_over_size": int(done.stdout) / size,
        }
    )
