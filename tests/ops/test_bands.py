"""Losses where no kernel serves, in bands or by classes: no seams, no full-size logits, labels looked at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from setr_fast.ops import OPS
from setr_fast.ops._bands import BAND_BYTES
from setr_fast.ops._labels import ALL_LEGAL, class_counts, illegal_labels, labels_known

CLASSES, FULL = 24, 96


class Largest(TorchDispatchMode):
    """Keeps the largest memory that one tensor took."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        held = [t.untyped_storage().nbytes() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.bytes = max(self.bytes, *held, 0)
        return result


def _arguments(name: str) -> tuple[Any, ...]:
    logits, labels = torch.randn(1, CLASSES, 24, 24), torch.randint(0, CLASSES, (1, FULL, FULL), dtype=torch.uint8)
    place = FULL, FULL, False, 255
    return {
        "upsample_cross_entropy": (logits, labels, None, *place, "valid", 0.1, True),
        "upsample_cross_entropy_map": (logits, labels, *place),
        "upsample_cross_entropy_map_backward": (torch.randn(1, FULL, FULL), logits, labels, *place),
        "upsample_class_sums": (logits, labels, *place, 2),
        "upsample_class_sums_backward": (torch.randn(2, CLASSES), logits, labels, *place, 2),
        "upsample_lovasz": (logits, labels, None, *place, True),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        op.name
        for op in OPS.values()
        if "Tensor labels" in op.schema and any(backend.name.startswith("by_") for backend in op.backends)
    ],
)
def test_no_full_size_logits_are_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BAND_BYTES, "cpu", 2**16)
    full = CLASSES * FULL * FULL * 4
    by = next(backend.name for backend in OPS[name].backends if backend.name.startswith("by_"))
    with torch.no_grad(), Largest() as ours:
        OPS[name].run(by, *_arguments(name))
    assert ours.bytes <= full / 2.5, "four classes' maps, or a map of numbers of 64 bits"
    with torch.no_grad(), Largest() as plain:
        OPS[name].run("reference", *_arguments(name))
    assert plain.bytes >= full


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(
    ("low", "size", "cut"), [((5, 7), (33, 50), (31, 47)), ((9, 4), (5, 3), (5, 3)), ((6, 5),) * 3]
)
def test_seams_of_bands_change_nothing(
    low: tuple[int, int], size: tuple[int, int], cut: tuple[int, int], corners: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BAND_BYTES, "cpu", 2 * 7 * cut[1] * 8 * 3)  # three rows of a batch of two
    logits, labels = torch.randn(2, 7, *low, dtype=torch.float64), torch.randint(0, 7, (2, *cut))
    labels[:, ::4] = 255
    weights = torch.rand(7, dtype=torch.float64)
    place = *size, corners, 255
    for name, args in (
        ("upsample_cross_entropy", (logits, labels, weights, *place, "valid", 0.1, True)),
        ("upsample_cross_entropy_map", (logits, labels, *place)),
        ("upsample_cross_entropy_map_backward", (torch.rand(2, *cut).double(), logits, labels, *place)),
        ("upsample_class_sums", (logits, labels, *place, 3)),
        ("upsample_class_sums_backward", (torch.rand(2, 7).double(), logits, labels, *place, 3)),
    ):
        pairs = zip(*(tree_leaves(OPS[name].run(by, *args)) for by in ("by_rows", "reference")), strict=True)
        for got, want in pairs:
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_that_are_no_class_are_found_picture_by_picture(dtype: torch.dtype) -> None:
    labels = torch.randint(0, 5, (3, 4, 6)).to(dtype)
    labels[0, 1, 1], labels[1, 3, 5] = 100, 77
    assert illegal_labels(labels, 5, 100).tolist() == [ALL_LEGAL, 77, ALL_LEGAL]
    if dtype.is_signed:
        labels[2, 0, 0] = -3
        assert illegal_labels(labels, 5, 100).tolist() == [ALL_LEGAL, 77, -3]
    assert illegal_labels(labels[:, :0], 5, 100).tolist() == [ALL_LEGAL] * 3


@pytest.mark.parametrize("name", ["upsample_cross_entropy", "upsample_class_sums", "upsample_lovasz"])
def test_labels_that_are_known_to_be_wrong_count_as_ignored(name: str) -> None:
    args = _arguments(name)
    ignored, wrong = args[1].clone(), args[1].clone()
    ignored[0, :40], wrong[0, :40] = 255, 200
    by = next(backend.name for backend in OPS[name].backends if backend.name.startswith("by_"))
    want = OPS[name].run(by, args[0], ignored, *args[2:])
    with labels_known():
        got = OPS[name].run(by, args[0], wrong, *args[2:])
    assert all(map(torch.equal, got, want))


def test_classes_are_counted_alike_by_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.randint(0, 9, (2, 30, 31), dtype=torch.uint8)
    labels[0, :7], labels[1, 3] = 255, 4
    for ignored in (255, 4):
        want = class_counts(labels, 6, ignored)
        with monkeypatch.context() as patch:
            patch.setattr("setr_fast.ops._labels._atomics_are_cheap", lambda device: False)
            assert torch.equal(class_counts(labels, 6, ignored), want)
        assert int(want.sum()) == int(((labels < 6) & (labels != ignored)).sum())
