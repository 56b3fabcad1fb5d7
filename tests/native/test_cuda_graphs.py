"""On a device: ops of our CUDA kernels that wait for nothing are captured, and replayed on other values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from setr_fast.ops import OPS
from setr_fast.ops._op import Draw

pytestmark = pytest.mark.gpu
# Confusion counts wait for the kernel, since an illegal id must be the call's own error: they cannot be captured.
CAPTURED = [
    "upsample_argmax",
    "upsample_accumulate",
    "upsample_accumulate_argmax",
    "patch_embed_rows",
    "patch_embed_product",
]


def _arguments(name: str, seed: int) -> tuple[Any, ...]:
    case = next(c for c in OPS[name].cases() if not c.bench and "counted" not in c.name)
    return case.make(Draw.on("cuda", seed=seed))


def _outputs(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple | list) else [value]


@pytest.mark.parametrize("name", CAPTURED)
def test_a_captured_graph_gives_what_eager_gives(name: str) -> None:
    op, args, other = OPS[name], _arguments(name, 0), _arguments(name, 1)
    op.run("native", *args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _outputs(op.run("native", *args))
    for ours, theirs in zip(args, other, strict=True):
        if isinstance(ours, Tensor):
            ours.copy_(theirs)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, _outputs(op.run("native", *other))))
