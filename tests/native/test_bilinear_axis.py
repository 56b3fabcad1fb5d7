"""csrc/bilinear.h: the arithmetic that CPU and CUDA share, against torch's own interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from setr_fast.ops import _native

SIZES = [*((i, o) for i in range(1, 14) for o in range(1, 30)), (32, 512), (33, 129), (97, 1000), (512, 128), (3, 4097)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_sources_are_those_of_torch(align_corners: bool, wide: bool) -> None:
    module = _native.load()
    if module is None:
        pytest.skip(_native.missing("cpu"))
    dtype = torch.float64 if wide else torch.float32
    for size, out in SIZES:
        low, high, weight, begin, end = module.bilinear_axis(size, out, align_corners, wide)
        ours = np.zeros((size, out))
        np.add.at(ours, (low, np.arange(out)), 1 - weight.astype(np.float64))
        np.add.at(ours, (high, np.arange(out)), weight.astype(np.float64))
        rows = torch.eye(size, dtype=dtype)[:, None, None]
        theirs = torch.nn.functional.interpolate(rows, size=(1, out), mode="bilinear", align_corners=align_corners)
        tolerance = 1e-13 if wide else 4e-7 * max(size, 8)
        np.testing.assert_allclose(ours, theirs[:, 0, 0].numpy(), atol=tolerance, err_msg=f"{size} -> {out}")
        used = np.arange(out)
        for source in range(size):
            takes_part = used[(low == source) | (high == source)]
            span = np.arange(begin[source], end[source])
            assert set(takes_part) <= set(span), f"{size} -> {out}, source {source}"
            assert len(span) <= len(takes_part) + (source in (0, size - 1)) * out, f"{size} -> {out}, source {source}"
