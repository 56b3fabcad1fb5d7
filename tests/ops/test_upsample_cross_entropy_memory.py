"""Peak memory of loss and gradient in a process of its own, against plain PyTorch on full-size logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from setr_fast.ops import _native

ROOT = Path(__file__).resolve().parents[2]
SCALES = {16: 1 / 10, 4: 1 / 10, 2: 1 / 2.5}  # and the share of full-size logits' memory that ours may take
SCRIPT = """
import json, re, sys
import torch
import torch.nn.functional as F
from setr_fast.ops import upsample_cross_entropy, upsample_cross_entropy_map
def resident(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
def loss_of(side, z, y, size):
    if side == "ours":
        return upsample_cross_entropy(z, y, size).loss
    if side == "map":
        return upsample_cross_entropy_map(z, y, size).losses.mean()
    return F.cross_entropy(F.interpolate(z, size=size, mode="bilinear"), y.long(), ignore_index=255)
def growth(side, scale):
    z = torch.randn(1, 150, 512 // scale, 512 // scale, requires_grad=True)
    y = torch.randint(0, 150, (1, 512, 512), dtype=torch.uint8)
    open("/proc/self/clear_refs", "w").write("5")  # the peak is what is resident now
    before = resident("VmHWM")
    loss_of(side, z, y, (512, 512)).backward()
    return resident("VmHWM") - before
small = torch.zeros(1, 32, 32, dtype=torch.uint8)
sides = ("ours", "map", "plain")
for side in sides:
    loss_of(side, torch.zeros(1, 150, 2, 2, requires_grad=True), small, (32, 32)).backward()
print(json.dumps([[growth(side, int(scale)) for side in sides] for scale in sys.argv[1:]]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures with Linux's /proc")
@pytest.mark.skipif(bool(_native.missing("cpu")), reason=_native.missing("cpu") or "compiled")
def test_peak_memory_is_a_fraction_of_what_full_size_logits_take() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, SCALES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for (scale, share), (ours, of_map, plain) in zip(SCALES.items(), json.loads(done.stdout), strict=True):
        assert plain > 400, "MiB: logits, their logarithms of the softmax, gradients"
        assert ours <= share * plain, scale
        assert of_map <= share * plain, scale
