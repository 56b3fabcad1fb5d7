"""Habits of the house that a machine can check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    p
    for d in ("setr_fast", "csrc", "kernels", "benchmarks")
    for p in sorted((ROOT / d).rglob("*"))
    if p.suffix in {".py", ".cpp", ".cu", ".h", ".cuh"} and not p.is_symlink()
]


def test_no_file_outgrows_its_subject() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"split these along their subjects: {long}"


def test_no_attic_and_no_unfinished_words() -> None:
    names = [p for p in SOURCES if p.stem in {"utils", "helpers", "misc", "common"}]
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    marked = [f"{p.relative_to(ROOT)}" for p in SOURCES if words.search(p.read_text())]
    assert not names
    assert not marked


def test_sources_are_ascii() -> None:
    strange = [str(p.relative_to(ROOT)) for p in SOURCES if not p.read_text().isascii()]
    assert not strange


def test_importing_the_package_loads_neither_torch_nor_kernels() -> None:
    code = (
        "import sys, setr_fast, setr_fast.cli\n"
        "setr_fast.list_models()\n"
        "heavy = ('torch', 'triton', 'xformers', 'numpy', 'PIL', 'torchvision', 'timm')\n"
        "bad = [m for m in heavy if m in sys.modules]\n"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_everything_imports_without_the_optional_packages() -> None:
    """triton, xformers, pybind11, ninja and the compiled extension are each absent on someone's machine."""
    code = (
        "import sys\n"
        "optional = ('triton', 'xformers', 'pybind11', 'ninja', 'pytest_benchmark', 'torchvision', 'timm', 'av')\n"
        "optional += ('webdataset', 'pyarrow', 'h5py', 'onnx', 'onnxscript', 'onnxruntime', 'matplotlib')\n"
        "for name in (*optional, 'setr_fast._native'):\n"
        "    sys.modules[name] = None\n"
        "import setr_fast, torch\n"
        "model = setr_fast.create_model('setr_pup_vit_t16', num_classes=3, image_size=32, depth=4, head_channels=8)\n"
        "model.eval()(torch.zeros(1, 3, 32, 32))\n"
        "z = torch.zeros(2, 2, dtype=torch.uint8)\n"
        "m = setr_fast.ops.confusion_matrix(z, z, 2, 255)\n"
        "assert m.tolist() == [[4, 0], [0, 0]], m"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
