"""augment_label: OpenCV's nearest pixels, id tables, padding and illegal ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops import OPS, _native, augment_label

OP = OPS["augment_label"]
side = st.integers(1, 40)
needs_extension = pytest.mark.skipif(bool(_native.reason()), reason=f"no extension: {_native.reason()}")
BACKENDS = ["reference", pytest.param("native", marks=needs_extension)]
DTYPES = {torch.uint8: np.uint8, torch.uint16: np.uint16, torch.int32: np.int32}


def ids(height: int, width: int, dtype: torch.dtype, limit: int = 256, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, limit, (height, width)).astype(DTYPES[dtype]))


def table(entries: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, entries, dtype=np.uint8))


@st.composite
def arguments(draw: st.DrawFn) -> tuple:
    dtype, entries, seed = draw(st.sampled_from(list(DTYPES))), draw(st.sampled_from([None, 256, 65536])), draw(side)
    limit = 65536 if entries == 65536 and dtype != torch.uint8 else 256
    label = ids(draw(side), draw(side), dtype, limit, seed)
    size = list(label.shape) if draw(st.booleans()) else [draw(side), draw(side)]
    offset, crop = [draw(st.integers(0, 45)), draw(st.integers(0, 45))], [draw(side), draw(side)]
    return label, size, offset, crop, draw(st.booleans()), entries and table(entries, seed), draw(st.integers(0, 255))


@needs_extension
@given(arguments())
@settings(max_examples=200, deadline=None)
def test_native_gives_the_bits_of_the_reference(args: tuple) -> None:
    assert torch.equal(OP.run("native", *args), OP.run("reference", *args))


@pytest.mark.parametrize("backend", BACKENDS)
def test_resize_equals_opencv_bit_for_bit(backend: str) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(5)
    for trial in range(150):
        height, width, new_height, new_width = (int(n) for n in rng.integers(1, 90, 4))
        label = ids(height, width, (torch.uint8, torch.uint16)[trial % 2], 256, trial)
        expected = cv2.resize(label.numpy(), (new_width, new_height), interpolation=cv2.INTER_NEAREST)
        size = [new_height, new_width]
        got = OP.run(backend, label, size, [0, 0], size, False, None, 255).numpy()
        assert np.array_equal(got, expected.reshape(size)), (height, width, size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_ids_go_through_the_table(backend: str) -> None:
    label = torch.tensor([[0, 300], [65535, 7]], dtype=torch.int32).to(torch.uint16)
    lookup = torch.full((65536,), 255, dtype=torch.uint8)
    lookup[300], lookup[65535], lookup[7] = 1, 2, 3
    out = OP.run(backend, label, [2, 2], [0, 0], [2, 3], True, lookup, 9)
    assert out.tolist() == [[1, 255, 9], [3, 2, 9]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("value", "entries"), [(256, None), (-1, None), (256, 256), (65536, 65536), (-(2**31), 65536), (2**31 - 1, 256)]
)
def test_an_id_outside_the_table_raises_and_is_named(backend: str, value: int, entries: int | None) -> None:
    label = torch.zeros(3, 4, dtype=torch.int32)
    label[1, 2] = value
    args = (label, [3, 4], [0, 0], [3, 4], False, entries and table(entries), 255)
    with pytest.raises(ShapeError, match=rf"every id must be 0 to .*, got {value}\b"):
        OP.run(backend, *args)
    outside = OP.run(backend, label, [3, 4], [2, 0], *args[3:])  # the illegal pixel is not in this crop
    assert outside.shape == (3, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_maps_are_read_as_they_look(backend: str) -> None:
    wide = ids(12, 20, torch.uint16)
    for view in (wide[::2, 1:14], wide.T):
        args = ([9, 11], [0, 0], [9, 11], True, None, 255)
        assert torch.equal(OP.run(backend, view, *args), OP.run("reference", view.contiguous(), *args))


@needs_extension
@given(arguments())
@settings(max_examples=50, deadline=None)
def test_native_writes_every_output_value_and_nothing_else(args: tuple) -> None:
    module, (height, width) = _native.load(), args[3]
    for poison in (0xA5, 0x5A):
        buffer = np.full(height * width + 128, poison, dtype=np.uint8)
        out = buffer[64:-64].reshape(height, width)
        module.augment_label(*(a.numpy() if isinstance(a, Tensor) else a for a in args), out=out)
        assert (buffer[:64] == poison).all()
        assert (buffer[-64:] == poison).all()
        assert np.array_equal(out, OP.run("reference", *args).numpy())


GOOD = (torch.zeros(4, 5, dtype=torch.uint8), [4, 5], [0, 0], [4, 5], False, None, 255)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.zeros(4, 5)),
        (0, torch.zeros(4, 5, dtype=torch.int64)),
        (0, torch.zeros(4, 5, 1, dtype=torch.uint8)),
        (0, torch.zeros(4, 0, dtype=torch.uint8)),
        (1, [0, 5]),
        (1, [-4, 5]),
        (1, [2**62, 5]),
        (2, [-1, 0]),
        (2, [0, 2**60]),
        (3, [0, 5]),
        (3, [2**40, 2**40]),
        (5, torch.zeros(255, dtype=torch.uint8)),
        (5, torch.zeros(256, dtype=torch.int64)),
        (6, 256),
        (6, -1),
    ],
)
def test_hostile_arguments_raise(backend: str, place: int, value: object) -> None:
    args = [value if i == place else a for i, a in enumerate(GOOD)]
    with pytest.raises(ShapeError, match="augment_label"):
        augment_label(*args)
    with pytest.raises((ShapeError, TypeError)):
        OP.run(backend, *args)
