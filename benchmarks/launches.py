"""``python -m benchmarks.launches``: other launches of the attention kernels, beside the table's and PyTorch's kernels.

For whoever has a card: what is faster here by more than the spread belongs into ``LAUNCHES`` of kernels/attention.py.
Candidates are those that compiled for sm_90 without a spill and without products one after the other; how each was
thought to win stands beside it. A candidate whose result is not the table's is named WRONG and not timed. What Triton
specialises by warps comes last, when all else is printed: should one of these hang, only they are lost.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.measure import in_turns, quantiles
from setr_fast.ops import OPS

HEADS, WIDTH = 16, 64
SHAPES = ((16, 1024), (8, 2304))
"""Pictures and tokens of ViT-L at 512 and 768 pixels."""
CALLS = 10
"""Of one side, recorded in one graph: a launch costs the processor about as much as a small one costs the card."""
CANDIDATES: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "forward": (
        (64, 64, 4, 3),  # four blocks of one warpgroup, K and V are read twice as often
        (64, 128, 4, 2),  # half the rescaling and half the steps
        (64, 128, 4, 3),
        (128, 64, 8, 2),  # less shared memory, the same two blocks
        (128, 64, 8, 4),
        (128, 128, 8, 2),  # the fewest steps, one block of two warpgroups
        (256, 64, 8, 3),  # two products for each load of K and V
    ),
    "dkdv": (
        (64, 64, 4, 3),  # the next queries but one are loaded
        (64, 128, 8, 2),  # two warpgroups share the loads of Q and the gradient
        (32, 64, 4, 3),  # fewer registers: three blocks to a multiprocessor
    ),
    "dq": (
        (64, 64, 4, 3),
        (128, 64, 8, 2),  # 64 KiB instead of 80: a third block, were the registers there
        (128, 128, 8, 2),
    ),
    "atomic": (
        (64, 64, 4, 2),  # two blocks to a multiprocessor
        (64, 64, 8, 2),
    ),
}
DESCRIPTORS = (
    (128, 64, 8, 3),  # the table's launch, its loads by the copy engine: seven registers and all addresses fewer
    (64, 128, 4, 2),
    (64, 64, 4, 3),
)
"""Launches of kernels/attention_descriptors.py."""
SPECIALISED = (
    (128, 64, 4, 3),  # two groups of four warps and one warp that loads
    (128, 128, 4, 2),  # the fewest steps
)
"""The same, loads and products by warps of their own."""


def main() -> int:
    """Print a table per shape."""
    if not torch.cuda.is_available():
        print("launches: needs a CUDA device")
        return 1
    kernels = importlib.import_module("setr_fast.kernels.attention")
    card = kernels.card_class(None)
    print(f"{torch.cuda.get_device_name(0)}, entries of {card}, bfloat16, {HEADS} heads of {WIDTH}, microseconds")
    for batch, tokens in SHAPES:
        qkv, grad = arguments(batch, tokens, "cuda")
        race(f"{batch} pictures of {tokens} tokens", sides_of(qkv, grad, card) | described(qkv, DESCRIPTORS), 6.0)
    for batch, tokens in SHAPES if card == "sm_90" else ():
        qkv, _ = arguments(batch, tokens, "cuda")
        table = {"forward, the table's": partial(kernels.attention, qkv, WIDTH**-0.5, card)}
        named = f"{batch} pictures of {tokens} tokens, specialised by warps"
        race(named, table | described(qkv, SPECIALISED, warp_specialize=True), 2.0)
    return 0


def race(what: str, sides: dict[str, Callable[[], Any]], seconds: float) -> None:
    """Print what each side takes."""
    graphs = {name: graph_of(run) for name, run in checked(sides).items()}
    times = in_turns({name: partial(_replayed, graph) for name, graph in graphs.items()}, rounds=9, seconds=seconds)
    print(f"{what}: median (20th to 80th percentile)")
    for name, taken in times.items():
        q = {key: value / CALLS * 1e6 for key, value in quantiles(taken).items()}
        print(f"  {name:48s} {q['median']:9.1f} ({q['p20']:.1f} to {q['p80']:.1f})", flush=True)


def described(
    qkv: Tensor, launches: tuple[tuple[int, int, int, int], ...], *, warp_specialize: bool = False
) -> dict[str, Callable[[], Any]]:
    """Return launches of the forward with tensor descriptors, on cards that have the copy engine."""
    if qkv.is_cuda and torch.cuda.get_device_capability(qkv.device)[0] < 9:
        return {}
    kernels, plain = (importlib.import_module(f"setr_fast.kernels.{n}") for n in ("attention_descriptors", "attention"))
    how = "forward descriptors, by warps" if warp_specialize else "forward descriptors"
    run = partial(kernels.attention, qkv, WIDTH**-0.5, warp_specialize=warp_specialize)
    return {f"{how} {launch}": partial(run, launch=plain.Launch(*launch)) for launch in launches}


def arguments(batch: int, tokens: int, device: str) -> tuple[Tensor, Tensor]:
    """Return qkv and the gradient of out."""
    qkv = torch.randn((batch, tokens, 3, HEADS, WIDTH), device=device).bfloat16()
    return qkv, torch.randn((batch, tokens, HEADS * WIDTH), device=device).bfloat16()


@contextmanager
def launched(entry: tuple[str, int, str, str], launch: tuple[int, int, int, int]) -> Iterator[None]:
    """Put another launch into the table."""
    kernels = importlib.import_module("setr_fast.kernels.attention")
    kept = kernels.LAUNCHES[entry]
    kernels.LAUNCHES[entry] = kernels.Launch(*launch)
    try:
        yield
    finally:
        kernels.LAUNCHES[entry] = kept


def sides_of(qkv: Tensor, grad: Tensor, card: str) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name: the table's launch of a direction, then the candidates, then PyTorch's kernels."""
    kernels, atomic = (importlib.import_module(f"setr_fast.kernels.{n}") for n in ("attention", "attention_atomic"))
    scale = WIDTH**-0.5
    known = kernels.attention(qkv, scale, card)
    forward = partial(kernels.attention, qkv, scale, card)
    split = partial(kernels.attention_backward, grad, qkv, *known, scale, card)
    runs = {
        "forward": forward,
        "dkdv": split,
        "dq": split,
        "atomic": partial(atomic.attention_backward, grad, qkv, *known, scale, card),
    }
    sides: dict[str, Callable[[], Any]] = {}
    for kernel, run in runs.items():
        entry = (kernel, WIDTH, "half", card)
        table = kernels.LAUNCHES[entry]
        sides[f"{kernel} {tuple(table)}, the table's"] = run
        for launch in CANDIDATES[kernel]:
            if launch != tuple(table):
                sides[f"{kernel} {launch}"] = partial(_with, entry, launch, run)
    for name in ("sdpa_cudnn", "sdpa_flash"):
        for op, args in ((OPS["attention"], (qkv, scale)), (OPS["attention_backward"], (grad, qkv, *known, scale))):
            if not op.refusals(next(b for b in op.backends if b.name == name), *args):
                sides[f"{'forward' if op.name == 'attention' else 'backward'} {name}"] = partial(op.run, name, *args)
    return sides


def checked(sides: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """Run each side once; leave out, and name, what fails or is not what the first of its direction gives."""
    right: dict[str, Callable[[], Any]] = {}
    first: dict[bool, Tensor] = {}
    for name, run in sides.items():
        try:
            got = run()
            got = got[0] if isinstance(got, tuple) else got
            want = first.setdefault(name.startswith("forward"), got)
            off, most = float((got.double() - want).abs().max()), float(want.abs().max())
        except Exception as error:
            print(f"  {name}: FAILED: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
            continue
        if off <= 2**-6 * most:
            right[name] = run
        else:
            print(f"  {name}: WRONG, off by {off:.3g} of {most:.3g}")
    return right


def graph_of(run: Callable[[], Any]) -> Any:
    """Return CALLS calls as a CUDA graph."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    return graph


def _with(entry: tuple[str, int, str, str], launch: tuple[int, int, int, int], run: Callable[[], Any]) -> Any:
    with launched(entry, launch):
        return run()


def _replayed(graph: Any, _turn: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


if __name__ == "__main__":
    sys.exit(main())
