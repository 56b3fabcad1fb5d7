"""Loading takes the memory of the file once: measured in a process of its own, at the width of ViT-L."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import setr_fast
from setr_fast.models.catalog import model_spec
from setr_fast.models.model import SegmentationModel
from tests.checkpoints.random_models import foreign_tensors, random_state, write_file

LIMIT = 1.3  # of the file's size

MEASURE = """
import sys
import setr_fast
from setr_fast.checkpoints import load

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

setr_fast.load(sys.argv[2], num_heads=3, taps=(0, 1, 2, 3))  # code and libraries are in memory now
before = kilobytes("VmRSS")
model = setr_fast.load(sys.argv[1], num_heads=16, taps=(0, 1, 2, 3))
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the /proc of Linux")
@pytest.mark.parametrize("family", ["setr", "paddleseg", "native"])
def test_peak_memory_stays_near_the_size_of_the_file(family: str, tmp_path: Path) -> None:
    from tests.checkpoints.test_load import make

    small, _, _ = make("paddleseg" if family == "paddleseg" else "setr", "naive", tmp_path)
    small = small.rename(small.with_stem("small"))
    spec = model_spec("setr_naive_vit_l16", 5, 96, depth=4, taps=(0, 1, 2, 3), aux_levels=(0, 1, 2))
    spec = spec.replace(shared_modules=family == "paddleseg")
    state = random_state(spec, family)
    if family == "native":
        model = SegmentationModel(spec)
        model.load_state_dict(state)
        model.save(tmp_path / "native")
        path = tmp_path / "native"
        size = (path / "model.safetensors").stat().st_size
    else:
        path = write_file(family, foreign_tensors(family, spec, state), tmp_path)
        size = path.stat().st_size
    assert size > 190 << 20
    environment = os.environ | {"PYTHONPATH": str(Path(setr_fast.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(small)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < LIMIT * size, f"{int(done.stdout) / size:.2f} times the file"
