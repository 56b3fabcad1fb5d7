"""The emulator that CUDA kernels are proven with computes what a GPU does, and notices what a GPU suffers from."""

from __future__ import annotations

import ctypes
import functools
import re

import pytest
import torch
from torch import Tensor

from tests.native.emulated import HERE, built, guarded

N = 64


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(built([HERE / "faults.cu"])))
    library.run_kernel.restype = ctypes.c_char_p
    return library


def run(name: str, out: Tensor, *, n: int = N, good: bool = True, backwards: bool = False, **given: Tensor) -> str:
    """Run a kernel of faults.cu; return the error, or an empty text."""
    a, b = given.get("a", out), given.get("b", out)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (a, b, out)]
    text = _library().run_kernel(name.encode(), *pointers, n, ctypes.c_bool(good), ctypes.c_bool(backwards))
    return text.decode() if text else ""


@pytest.mark.parametrize("backwards", [False, True])
def test_barriers_shared_memory_and_shuffles(backwards: bool) -> None:
    values, out = torch.arange(N, dtype=torch.float32), torch.full((N,), torch.nan)
    assert not run("sum", out, a=values, backwards=backwards)
    assert torch.equal(out, values.sum().expand(N))


def test_a_missing_barrier_shows() -> None:
    values, out, other = torch.arange(N, dtype=torch.float32), torch.zeros(N), torch.zeros(N)
    assert not run("sum", out, a=values, good=False)
    assert not run("sum", other, a=values, good=False, backwards=True)
    assert not torch.equal(out, other)
    assert out.isnan().any(), "what is read too early is NaN"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("beyond", r"memory that is not the kernel's is touched at block \(0, 0, 0\), thread \(0, 0, 0\)"),
        ("small", "shared memory beyond what was asked for is written"),
        ("greedy", "a launch beyond the limits of a card"),
        ("some_leave", "not all threads of the block come to a barrier"),
        ("lanes_differ", "lanes wait for lanes that never come"),
    ],
)
def test_faults_are_errors_with_their_place(name: str, error: str) -> None:
    out = guarded(torch.zeros(N))
    assert re.search(error, run(name, out, a=torch.ones(N)))
    assert not run("sum", out, a=torch.ones(N)), "the next launch works"
    assert torch.equal(out, torch.full((N,), float(N)))


def test_a_copy_arrives_when_it_is_waited_for() -> None:
    values, out = guarded(torch.randn(4 * N)), torch.zeros(4 * N)
    assert not run("copies", out, a=values)
    assert torch.equal(out, values)
    assert not run("copies", out, a=values, good=False)
    assert out.isnan().all()


def test_products_of_a_warp() -> None:
    a, b, out = torch.randn(16, 16).half(), torch.randn(8, 16).half(), torch.full((16, 8), torch.nan)
    assert not run("product", out, n=32, a=a, b=b)
    torch.testing.assert_close(out, a.float() @ b.float().t())


def test_sixteen_bits_are_rounded_as_torch_rounds() -> None:
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0, 2**-25, 3e38])
    values = torch.cat([halfway, -halfway, torch.tensor([torch.inf, 0.0]), 1e3 * torch.randn(46)])
    out = torch.empty(2 * N, dtype=torch.int16)
    assert not run("narrowed", out, a=values)
    assert torch.equal(out[:N].view(torch.bfloat16), values.bfloat16())
    assert torch.equal(out[N:].view(torch.float16), values.half())
