"""The CUDA kernel of upsample_argmax compiles for the cards that are built for, without spilling a register.

It has not run on a GPU: tests/ops/test_registry.py holds it to the reference where there is one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "upsample_argmax.cu"
REGISTERS = 64
"""At most: eight blocks of 128 threads then share a processor's 65 536."""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("card", ["sm_80", "sm_90"])
def test_no_spills_and_few_registers(card, tmp_path):
    command = ["nvcc", "-std=c++20", "-O3", f"-arch={card}", "-Xptxas", "-v", "-c", SOURCE, "-o", tmp_path / "out.o"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", log)]
    used = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    assert len(used) == 4, "float32 and bfloat16 logits, 8-bit and 16-bit classes"
    assert set(spills) == {0}
    assert max(used) <= REGISTERS
