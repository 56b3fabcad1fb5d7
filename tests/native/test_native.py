"""The compiled extension: what it tells, the order it is loaded in, and life without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from setr_fast.ops import OPS, _native

ROOT = Path(__file__).resolve().parents[2]
needs_extension = pytest.mark.skipif(bool(_native.reason()), reason=f"no extension: {_native.reason()}")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_every_op_runs_without_the_extension() -> None:
    done = python(
        "import sys; sys.modules['setr_fast._native'] = None\n"
        "import torch, setr_fast\n"
        "from setr_fast.ops import OPS, _native, confusion_matrix\n"
        "ids = torch.zeros(2, 3, dtype=torch.uint8)\n"
        "assert confusion_matrix(ids, ids, 2).tolist() == [[6, 0], [0, 0]]\n"
        "assert _native.load() is None\n"
        "assert OPS['augment_label'].choose(ids, [2, 3], [0, 0], [2, 3], False, None, 255) == 'reference'\n"
        "assert 'pip install' in _native.reason(), _native.reason()\n"
        "assert 'missing' in _native.build_info()['extension']"
    )
    assert done.returncode == 0, done.stderr


def test_forcing_the_missing_extension_says_why_it_is_missing() -> None:
    done = python(
        "import sys; sys.modules['setr_fast._native'] = None\n"
        "import torch, setr_fast\n"
        "ids = torch.zeros(2, 3, dtype=torch.uint8)\n"
        "with setr_fast.backend('confusion_matrix=native'):\n"
        "    setr_fast.ops.confusion_matrix(ids, ids, 2)\n"
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "BackendError" in last
    assert "not compiled" in last or "cannot be loaded" in last


@needs_extension
def test_importing_it_before_torch_is_an_error_not_a_crash() -> None:
    done = python(
        "import sys\n"
        "try:\n"
        "    import setr_fast._native\n"
        "except ImportError as error:\n"
        "    assert 'torch' in str(error), error\n"
        "    import torch, setr_fast._native\n"
        "    sys.exit(7)\n"
    )
    assert done.returncode == 7, done.stderr


@needs_extension
def test_importing_it_before_the_schemas_registers_all_the_same() -> None:
    done = python(
        "import torch, setr_fast._native\n"
        "from setr_fast.ops import OPS\n"
        "ids = torch.zeros(2, 3, dtype=torch.uint8)\n"
        "assert OPS['confusion_matrix'].run('native', ids, ids, 1, 255).tolist() == [[6]]"
    )
    assert done.returncode == 0, done.stderr


@needs_extension
def test_build_info_tells_how_it_was_compiled() -> None:
    info = _native.build_info()
    assert info["extension"] == "loaded"
    assert info["torch_target"] == "0x020b000000000000"
    assert "-ffp-contract=off" in info["flags"]
    assert "-march=native" not in info["flags"]
    assert info["compiler"].split()[0] in {"GNU", "Clang", "AppleClang"}
    assert "default" in info["cpu_variants"].split()
    assert info["cuda"] in {"built", "not built"}
    assert (info["cuda"] == "built") == bool(info["cuda_archs"])
    assert info["cuda_in_use"] == "yes" or info["cuda_in_use"].startswith("no: ")
    assert all(isinstance(value, str) for value in info.values())


@needs_extension
def test_kernels_are_registered_for_the_cpu() -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel("setr_fast_native::confusion_matrix", "CPU")
    assert "native" in OPS["confusion_matrix"].names()


@needs_extension
def test_it_uses_only_the_stable_symbols_of_torch() -> None:
    """One C++ symbol of torch would tie the file to the release that it was compiled with."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm on this machine")
    module = _native.load()
    assert module
    listing = subprocess.run([nm, "-D", "-u", str(module.__file__)], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-1] for line in listing.splitlines()]
    assert any(s.startswith(("aoti_torch_", "torch_")) for s in symbols)
    assert not [s for s in symbols if any(tie in s for tie in ("_ZN2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch"))]


@needs_extension
def test_a_card_that_is_too_old_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(6, 1), (7, 5)][index])
    said = _native._loaded_cuda.__wrapped__()
    assert said == "the CUDA kernels are for cards of capability 8.0 or newer, this one has 7.5"
