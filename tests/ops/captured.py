"""A CUDA graph of an op against the op itself, for the tests of a card."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from setr_fast.ops._op import Op


def outputs_of(value: Any) -> list[Tensor]:
    """Return an op's tensors."""
    return list(value) if isinstance(value, tuple | list) else [value]


def assert_captured(op: Op, backend: str, args: tuple[Any, ...], other: tuple[Any, ...]) -> list[Tensor]:
    """Record the op on ``args``, replay it on what ``other`` holds, and return what the graph gave."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs_of(op.run(backend, *args))
    for ours, theirs in zip(args, other, strict=True):
        if isinstance(ours, Tensor):
            ours.copy_(theirs)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, outputs_of(op.run(backend, *other))))
    return captured
