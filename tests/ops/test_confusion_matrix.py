"""confusion_matrix: counts, the ignored label, illegal ids, every mix of dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setr_fast.errors import ShapeError
from setr_fast.ops import OPS, _native, confusion_matrix
from setr_fast.ops.confusion_matrix import DTYPES

OP = OPS["confusion_matrix"]
needs_extension = pytest.mark.skipif(bool(_native.reason()), reason=f"no extension: {_native.reason()}")
BACKENDS = ["reference", pytest.param("native", marks=needs_extension)]


@st.composite
def arguments(draw: st.DrawFn) -> tuple:
    height, width, classes = draw(st.integers(0, 30)), draw(st.integers(1, 30)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    prediction, labels = (torch.randint(0, classes, (height, width), generator=generator) for _ in range(2))
    ignore = draw(st.sampled_from([255, 0, classes - 1]))
    labels[torch.rand(height, width, generator=generator) < 0.2] = ignore
    return prediction.to(draw(st.sampled_from(DTYPES))), labels.to(draw(st.sampled_from(DTYPES))), classes, ignore


@needs_extension
@given(arguments())
@settings(max_examples=150, deadline=None)
def test_native_counts_as_the_reference(args: tuple) -> None:
    assert torch.equal(OP.run("native", *args), OP.run("reference", *args))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_labels_columns_predictions_and_255_is_left_out(backend: str) -> None:
    labels = torch.tensor([[0, 0, 1], [255, 2, 2]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1, 1], [200, 0, 2]])
    expected = [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert OP.run(backend, prediction, labels, 3, 255).tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_negative_ignored_label(backend: str) -> None:
    labels, prediction = torch.tensor([-100, 1]), torch.tensor([5, 0])
    assert OP.run(backend, prediction, labels, 2, -100).tolist() == [[0, 0], [1, 0]]


@needs_extension
def test_native_does_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(1)
    prediction, labels = (torch.randint(0, 19, (700, 500), generator=generator) for _ in range(2))
    before = torch.get_num_threads()
    try:
        counts = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            counts.append(OP.run("native", prediction, labels, 19, 255))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(counts[0], counts[1])
    assert torch.equal(counts[0], counts[2])
    assert counts[0].sum() == labels.numel()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_maps_are_read_as_they_look(backend: str) -> None:
    prediction, labels = torch.randint(0, 4, (6, 8)), torch.randint(0, 4, (8, 6)).T
    expected = OP.run("reference", prediction.contiguous(), labels.contiguous(), 4, 255)
    assert torch.equal(OP.run(backend, prediction, labels, 4, 255), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("what", "value"), [("label", 3), ("label", -1), ("prediction", 3), ("prediction", -7)])
def test_an_illegal_id_raises_and_is_named(backend: str, what: str, value: int) -> None:
    prediction, labels = torch.zeros(200, 400, dtype=torch.int64), torch.zeros(200, 400, dtype=torch.int32)
    (labels if what == "label" else prediction)[199, 399] = value
    with pytest.raises(ValueError, match=rf"every {what} must be 0 to 2 .*, got {value}$"):
        OP.run(backend, prediction, labels, 3, 255)
    with pytest.raises(ShapeError, match=rf"every {what} must be 0 to 2 .*, got {value}$"):
        confusion_matrix(prediction, labels, 3, 255)


@pytest.mark.parametrize(
    ("prediction", "labels", "classes"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.uint8), 2),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.bool), 2),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 3, dtype=torch.uint8), 2),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8), 0),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8), -1),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8), 2**40),
    ],
)
def test_hostile_arguments_raise(prediction: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    with pytest.raises(ShapeError, match="confusion_matrix"):
        confusion_matrix(prediction, labels, classes, 255)
    for name in ("reference", "native") if not _native.reason() else ("reference",):
        with pytest.raises(ValueError, match="confusion_matrix"):
            OP.run(name, prediction, labels, classes, 255)


def test_it_compiles_into_a_graph_without_a_break() -> None:
    compiled = torch.compile(lambda p, t: confusion_matrix(p, t, 3, 255) + 1, backend="eager", fullgraph=True)
    labels = torch.randint(0, 3, (5, 5))
    assert torch.equal(compiled(labels, labels), confusion_matrix(labels, labels, 3, 255) + 1)


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [1, 19, 150, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_counts_as_the_reference(classes: int, dtype: torch.dtype) -> None:
    if dtype is torch.uint8 and classes > 255:
        pytest.skip("uint8 cannot hold these ids")
    generator = torch.Generator().manual_seed(classes)
    prediction, labels = (torch.randint(0, classes, (513, 1001), generator=generator) for _ in range(2))
    labels[::9] = 255 if dtype is torch.uint8 else 999
    args = (prediction.to(dtype), labels.to(dtype), classes, 255 if dtype is torch.uint8 else 999)
    on_gpu = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
    got = OP.run("native", *on_gpu)
    assert torch.equal(got.cpu(), OP.run("reference", *args))
    assert torch.equal(got, OP.run("native", *on_gpu))


@pytest.mark.gpu
@pytest.mark.parametrize(("what", "value"), [("label", 3), ("label", -1), ("prediction", 3), ("prediction", -7)])
def test_cuda_names_an_illegal_id(what: str, value: int) -> None:
    prediction, labels = torch.zeros(64, 64, dtype=torch.int64), torch.zeros(64, 64, dtype=torch.int64)
    (labels if what == "label" else prediction)[63, 63] = value
    with pytest.raises(ValueError, match=rf"every {what} must be 0 to 2 .*, got {value}$"):
        OP.run("native", prediction.cuda(), labels.cuda(), 3, 255)
