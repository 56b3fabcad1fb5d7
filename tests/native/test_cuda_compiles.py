"""Every CUDA source compiles for A100 and H100/H200; its kernels stay within the registers they are laid out for.

The registrations beside them are compiled, and run, by test_cuda_emulated.py.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
MOST_REGISTERS = 128
# Kernels with a limit of their own, by the start of their name: what each is laid out for.
REGISTERS = {
    "confusion_matrix_kernel": 64,
    "upsample_argmax_kernel": 102,  # five blocks of 128 threads
    "upsample_accumulate_kernel": 128,  # four blocks of 128 threads
    "patch_embed_product_kernel": 128,  # two blocks of 256 threads
    "upsample_combine_statistics_kernel": 208,  # of float32, two blocks of 128 threads; of 16 bits 168, three
    "upsample_combine_kernel": 168,  # three blocks of 128 threads per multiprocessor
    "upsample_combine_backward_kernel": 168,
}
# Kernels that may keep something in local memory (a stack frame, which is no spill), in bytes. Most may not.
STACK_BYTES: dict[str, int] = {}


class Kernel(NamedTuple):
    """What the assembler says of one kernel."""

    name: str
    registers: int
    stack_bytes: int
    spilled_bytes: int


@cache
def nvcc() -> str | None:
    sys.path.insert(0, str(ROOT / "csrc"))
    spec = importlib.util.spec_from_file_location("setr_fast_setup_of_cuda", ROOT / "setup.py")
    assert spec
    assert spec.loader
    pytest.importorskip("setuptools")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: str | None = module.find_nvcc()
    return found


def compile_cuda(source: Path, arch: str, output: Path) -> str:
    """Return what nvcc and the assembler say."""
    compiler = nvcc()
    if compiler is None:
        pytest.skip("no nvcc on this machine")
    command = [compiler, "-std=c++20", "-O3", f"-arch={arch}", "-Xptxas=-v", "-cubin", "-o", str(output), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    return report


def kernels_of(report: str) -> list[Kernel]:
    """Read the assembler's report."""
    blocks = re.split(r"Function properties for ", report)[1:]
    found = []
    for block in blocks:
        symbol = block.split()[0]
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        assert memory, block
        if registers is None:  # a device function that was not inlined
            found.append(Kernel(symbol, 0, int(memory[1]), int(memory[2]) + int(memory[3])))
            continue
        names = re.findall(r"\d([a-z][a-z_]*_kernel)", symbol)  # behind its length, in a mangled name
        name = names[-1] if names else symbol
        found.append(Kernel(name, int(registers[1]), int(memory[1]), int(memory[2]) + int(memory[3])))
    return found


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_kernels_compile_and_keep_to_registers(source: Path, arch: str, tmp_path: Path) -> None:
    report = compile_cuda(source, arch, tmp_path / "kernels.cubin")
    assert "warning" not in report, report
    kernels = kernels_of(report)
    assert kernels, f"the assembler reported no kernel in {source.name}"
    for kernel in kernels:
        assert kernel.spilled_bytes == 0, kernel
        assert kernel.stack_bytes <= STACK_BYTES.get(kernel.name, 0), kernel
        assert kernel.registers <= REGISTERS.get(kernel.name, MOST_REGISTERS), kernel


def test_limits_are_of_kernels_that_exist() -> None:
    text = "".join(source.read_text() for source in SOURCES)
    for name in (*REGISTERS, *STACK_BYTES):
        assert re.search(rf"\b{name}\(", text), f"no kernel is called {name}"


@pytest.mark.parametrize(
    ("body", "reads"),
    [
        (
            "float m[64]; for (int i = 0; i < 64; ++i) m[i] = to[i];"
            "for (int i = 0; i < 64; ++i) m[int(to[i * n]) & 63] += m[i];"
            "for (int i = 0; i < 64; ++i) to[i] = m[i];",
            "stack_bytes",
        ),
        (
            'float m[300]; _Pragma("unroll") for (int i = 0; i < 300; ++i) m[i] = to[i * n];'
            '__syncthreads(); _Pragma("unroll") for (int i = 0; i < 300; ++i) to[i * n + 1] = m[299 - i] * m[i];',
            "spilled_bytes",
        ),
    ],
    ids=["an array by a changing index", "too many live values"],
)
def test_what_leaves_the_registers_is_noticed(body: str, reads: str, tmp_path: Path) -> None:
    source = tmp_path / "bad.cu"
    source.write_text(f"__global__ void bad_kernel(float* __restrict__ to, int n) {{ {body} }}\n")
    (kernel,) = kernels_of(compile_cuda(source, "sm_90", tmp_path / "bad.cubin"))
    assert kernel.name == "bad_kernel"
    assert getattr(kernel, reads) > 0
