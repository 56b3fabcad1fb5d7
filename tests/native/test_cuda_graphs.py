"""On a device: ops of our CUDA kernels that wait for nothing are captured, and replayed on other values."""

from __future__ import annotations

from typing import Any

import pytest

from setr_fast.ops import OPS
from setr_fast.ops._op import Draw
from tests.ops.captured import assert_captured

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


@pytest.mark.parametrize("name", CAPTURED)
def test_a_captured_graph_gives_what_eager_gives(name: str) -> None:
    op, args, other = OPS[name], _arguments(name, 0), _arguments(name, 1)
    op.run("native", *args)
    assert_captured(op, "native", args, other)
