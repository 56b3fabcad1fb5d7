"""Our CUDA sources compiled for the CPU: registrations, launchers and kernels, run on CPU tensors.

Every ``csrc/cuda/*.cu`` and ``*.cpp`` is compiled as it stands by the C++ compiler against the headers of
``cuda_on_cpu/``, which stand in for CUDA's. Only what no header can stand in for is rewritten: ``<<<...>>>``,
``extern __shared__``, the key of the registration, and torch's ``new_empty`` and ``matmul``, whose memory is
guarded, and the guard of the device.
The ops appear as ``torch.ops.setr_fast_emulated.<name>``.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from setr_fast.ops import OPS

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).with_name("cuda_on_cpu")
OBJECTS = ROOT / "build" / "cuda_on_cpu" / "objects"
SOURCES = sorted(p for p in (ROOT / "csrc" / "cuda").iterdir() if p.suffix in (".cu", ".cpp"))
FLAGS = ["-std=c++20", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
# Registrations are held to what the extension is; a kernel has CUDA's own attributes and pragmas.
WARNINGS = {".cpp": ["-Wall", "-Wextra", "-Werror"], ".cu": ["-w"]}
LAUNCH = re.compile(r"([A-Za-z_]\w*)((?:<[^<>;(){}]*>)?)\s*<<<(.*?)>>>\(", re.DOTALL)
SHARED = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?([\w ]+?) (\w+)\[\];")
_SCHEMAS = torch.library.Library("setr_fast_emulated", "DEF")
KEY = re.compile(r"STABLE_TORCH_LIBRARY_IMPL\(setr_fast_native, CUDA, m\)")


def rewritten(source: Path, text: str) -> str:
    """Return a CUDA source as C++."""
    text = LAUNCH.sub(lambda m: f'cuda_on_cpu::launch("{m[1]}", {m[1]}{m[2]}, {m[3]})(', text)
    text = SHARED.sub(r"\1* const \2 = static_cast<\1*>(cuda_on_cpu::shared_memory());", text)
    text = KEY.sub("STABLE_TORCH_LIBRARY_IMPL(setr_fast_emulated, CPU, m)", text)
    text = re.sub(r"torch::stable::(new_empty|matmul)\(", r"cuda_on_cpu::\1(", text)
    text = text.replace("torch::stable::accelerator::DeviceGuard", "cuda_on_cpu::DeviceGuard")
    return f'#line 1 "{source}"\n{text}'


def _compiled(sources: list[Path], folder: Path) -> None:
    """Compile sources into ``emulated.so`` in ``folder``, and leave only that."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    found = importlib.util.find_spec("torch")
    assert found
    assert found.origin
    include = ["-isystem", str(HERE), "-isystem", str(Path(found.origin).parent / "include")]

    def run(*command: str) -> None:
        done = subprocess.run([compiler, *command], capture_output=True, text=True, cwd=work)
        assert done.returncode == 0, done.stderr

    def one(source: Path) -> str:
        level = _level(source)
        kept = OBJECTS / f"{_digest([source])}.o"
        if not kept.exists():
            copy = work / f"{source.stem}_{source.suffix[1:]}.cpp"
            copy.write_text(rewritten(source, source.read_text()))
            flags = [*FLAGS, *WARNINGS[source.suffix], level, "-include", f"all{level}.h", *include]
            run(*flags, "-I", str(source.parent), "-c", copy.name)
            os.replace(copy.with_suffix(".o"), kept)
        return str(kept)

    def precompiled(level: str) -> None:
        (work / f"all{level}.h").write_text(f'#include "{"emulator" if level == "-O1" else "tensors"}.h"\n')
        run(*FLAGS, level, *include, "-x", "c++-header", f"all{level}.h", "-o", f"all{level}.h.gch")

    with tempfile.TemporaryDirectory(dir=folder) as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        work = Path(name)
        missing = {_level(source) for source in sources if not (OBJECTS / f"{_digest([source])}.o").exists()}
        list(pool.map(precompiled, sorted(missing)))
        objects = list(pool.map(one, sources))
        # torch is loaded by the time the library is: an empty stand-in of its name serves the linker.
        (work / "empty.cpp").write_text("")
        run("-shared", "-Wl,-soname,libtorch_cpu.so", "empty.cpp", "-o", "libtorch_cpu.so")
        run("-shared", *objects, "-Wl,--no-as-needed", "-L.", "-ltorch_cpu", "-o", "emulated.so")
        os.replace(work / "emulated.so", folder / "emulated.so")


def _level(source: Path) -> str:
    return "-O1" if source.suffix == ".cu" else "-O0"  # kernels have loops to run, registrations do not


def _headers(source: Path) -> set[Path]:
    """Return all of our headers that a source includes."""
    found: set[Path] = set()
    open_ends = {source}
    while open_ends:
        path = open_ends.pop()
        for name in re.findall(r'#include ["<]([\w./]+)[">]', path.read_text()):
            here = {(folder / name).resolve() for folder in (path.parent, HERE)}
            open_ends |= {header for header in here if header.is_file()} - found
        found |= open_ends
    return found


def _digest(sources: list[Path]) -> str:
    digest = hashlib.sha256(f"{torch.__version__} {FLAGS}".encode())
    for source in sources:
        digest.update(rewritten(source, source.read_text()).encode())
    for header in sorted(set(HERE.glob("*.h")).union(*map(_headers, sources))):
        digest.update(header.read_bytes())
    return digest.hexdigest()[:16]


def built(sources: list[Path]) -> Path:
    """Return the library of these sources, compiled once for all processes and until something changes."""
    folder = OBJECTS.parent / _digest(sources)
    OBJECTS.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "emulated.so").exists():
            _compiled(sources, folder)
    return folder / "emulated.so"


@functools.cache
def library() -> ctypes.CDLL:
    """Load what is emulated; the ops of its registrations are ``torch.ops.setr_fast_emulated`` from then on."""
    path = built([*SOURCES, HERE / "module.cpp"])
    for op in OPS.values():
        _SCHEMAS.define(op.schema)
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


def serves(name: str) -> bool:
    """Return whether there is CUDA source for an op."""
    library()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"setr_fast_emulated::{name}", "CPU")


def call(name: str, *args: Any, backwards: bool = False) -> Any:
    """Run an op's CUDA source; contiguous tensors are handed over in guarded memory."""
    library().cuda_on_cpu_set_backwards(int(backwards))
    ours = [guarded(a) if isinstance(a, Tensor) and a.is_contiguous() else a for a in args]
    return getattr(torch.ops.setr_fast_emulated, name).default(*ours)


def guarded(tensor: Tensor) -> Tensor:
    """Return a contiguous copy that ends where touching memory is an error."""
    library()
    copy: Tensor = torch.ops.setr_fast_emulated.guarded.default(tensor)
    return copy
