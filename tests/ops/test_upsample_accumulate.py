"""upsample_accumulate: the kernel against the dense reference, whatever the tables; labels; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setr_fast.errors import ShapeError
from setr_fast.ops import OPS, _native, upsample_accumulate, upsample_accumulate_argmax
from setr_fast.ops._op import Draw
from setr_fast.ops.upsample_accumulate import _tables

SCORES, CLASSES = OPS["upsample_accumulate"], OPS["upsample_accumulate_argmax"]
needs_extension = pytest.mark.skipif(bool(_native.reason()), reason=f"no extension: {_native.reason()}")


@st.composite
def arguments(draw: st.DrawFn) -> tuple[Any, ...]:
    geometry = [
        tuple(draw(st.integers(1, most)) for most in (3, 3, 9, 40, 5, 6)) for _ in range(draw(st.integers(1, 3)))
    ]
    classes = draw(st.sampled_from([1, 2, 7, 33, 257]))
    size = draw(st.integers(0, 70)), draw(st.integers(0, 90))
    source = Draw.on(dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])), seed=draw(st.integers(0, 99)))
    tables = _tables(source, geometry, classes, size)
    for name in (2, 4):  # weights that say "not read", whole rows and columns of them included
        zeros = torch.rand(tables[name].shape, generator=source.generator) < draw(st.sampled_from([0.0, 0.3, 0.95]))
        tables[name][zeros] = 0
    return (*tables, [n for view in geometry for n in view], classes, list(size), draw(st.booleans()))


@needs_extension
@settings(max_examples=80, deadline=None)
@given(arguments())
def test_scores_are_those_of_dense_matrices(args):
    exact = SCORES.run("reference", args[0].double(), *args[1:])
    found = SCORES.run("native", *args)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-5)


@needs_extension
@settings(max_examples=80, deadline=None)
@given(arguments())
def test_classes_score_best_and_are_counted(args):
    size, classes = args[7], args[6]
    labels = Draw.on(seed=5).integers(0, min(classes, 255), tuple(size), torch.uint8)
    labels[::3] = 255
    found, counts = CLASSES.run("native", *args, labels, 255)
    several = len(args[5]) > 6
    exact = SCORES.run("reference", args[0].double(), *args[1:8], args[8] and several)
    if found.numel():
        lost = exact.amax(0) - exact.gather(0, found[None].long())[0]
        assert float(lost.max()) <= 2e-5 * max(float(exact.abs().max()), 1.0)
    counted = labels != 255
    cells = torch.bincount(labels[counted].long() * classes + found[counted].long(), minlength=classes**2)
    assert torch.equal(counts, cells.reshape(classes, classes))


@needs_extension
def test_large_logits_make_probabilities_that_sum_to_one():
    tables = _tables(Draw.on(), [(1, 2, 4, 5, 2, 2)] * 2, 11, (30, 40))
    tables[0] *= 3e3
    total = upsample_accumulate(*tables, [1, 2, 4, 5, 2, 2] * 2, 11, (30, 40)).sum(0)
    torch.testing.assert_close(total, torch.ones(30, 40))


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_extension)])
def test_a_label_that_is_no_class_is_refused(backend):
    tables = _tables(Draw.on(), [(1, 1, 3, 3, 2, 2)], 4, (6, 6))
    labels = torch.full((6, 6), 9, dtype=torch.uint8)
    with pytest.raises((ShapeError, ValueError), match="every label must be 0 to 3 or the ignored label 255, got 9"):
        CLASSES.run(backend, *tables, [1, 1, 3, 3, 2, 2], 4, [6, 6], True, labels, 255)
    assert upsample_accumulate_argmax(*tables, [1, 1, 3, 3, 2, 2], 4, [6, 6], True, labels, 9)[1].sum() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"views": [1, 1, 3, 3, 2]}, "views must be 6 positive numbers each"),
        ({"views": [1, 2, 3, 3, 2, 2]}, "logits must be flat and hold 72 numbers"),
        ({"size": (60, 6)}, "rows must be flat and hold 120 numbers"),
        ({"num_classes": 0}, "num_classes must be 1"),
        ({"size": (6, -1)}, "size must be a height and a width"),
    ],
)
def test_tables_of_another_length_are_refused(change, words):
    names = ("logits", "columns", "column_weights", "rows", "row_weights")
    values = dict(zip(names, _tables(Draw.on(), [(1, 1, 3, 3, 2, 2)], 4, (6, 6)), strict=True))
    values |= {"views": [1, 1, 3, 3, 2, 2], "num_classes": 4, "size": (6, 6)} | change
    with pytest.raises(ShapeError, match=words):
        upsample_accumulate(**values)


@needs_extension
def test_tables_that_point_outside_are_refused_by_the_kernel():
    tables = _tables(Draw.on(), [(1, 1, 3, 3, 2, 2)], 4, (6, 6))
    tables[1][3] = 3
    with pytest.raises(ValueError, match="columns must be 0 to 2, got 3"):
        SCORES.run("native", *tables, [1, 1, 3, 3, 2, 2], 4, [6, 6], True)
