"""Peak memory of loss and gradient in a process of its own, against plain PyTorch on full-size logits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from setr_fast.ops import _native

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import re, sys
import torch
import torch.nn.functional as F
from setr_fast.ops import upsample_cross_entropy, upsample_cross_entropy_map
side, scale = sys.argv[1], int(sys.argv[2])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
def loss_of(z, y, size):
    if side == "ours":
        return upsample_cross_entropy(z, y, size).loss
    if side == "map":
        return upsample_cross_entropy_map(z, y, size).losses.mean()
    return F.cross_entropy(F.interpolate(z, size=size, mode="bilinear"), y.long(), ignore_index=255)
loss_of(torch.zeros(1, 150, 2, 2, requires_grad=True), torch.zeros(1, 32, 32, dtype=torch.uint8), (32, 32)).backward()
z = torch.randn(1, 150, 512 // scale, 512 // scale, requires_grad=True)
y = torch.randint(0, 150, (1, 512, 512), dtype=torch.uint8)
before = peak()
loss_of(z, y, (512, 512)).backward()
print(peak() - before)
"""


def _peak(side: str, scale: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, side, str(scale)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(bool(_native.missing("cpu")), reason=_native.missing("cpu") or "compiled")
@pytest.mark.parametrize(("scale", "share"), [(16, 1 / 10), (4, 1 / 10), (2, 1 / 2.5)])
def test_peak_memory_is_a_fraction_of_what_full_size_logits_take(scale: int, share: float) -> None:
    plain = _peak("plain", scale)
    assert plain > 400, "MiB: logits, their logarithms of the softmax, gradients"
    assert _peak("ours", scale) <= share * plain
    assert _peak("map", scale) <= share * plain
