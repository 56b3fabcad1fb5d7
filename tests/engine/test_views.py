"""Merging views from small logits: against whole tensors, and what is held in memory."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from setr_fast.engine.batches import assemble
from setr_fast.engine.views import ROWS, Assembly, Geometry, View
from setr_fast.engine.windows import window_starts

CLASSES, PATCH = 6, 4


def run(batch: Tensor) -> Tensor:
    """Small logits that depend on the whole window, so that overlapping windows disagree."""
    height, width = batch.shape[-2:]
    low = avg_pool2d(pad(batch, (0, -width % PATCH, 0, -height % PATCH)), PATCH)
    mixed = low + low.mean((2, 3), keepdim=True) * torch.arange(1.0, 4.0)[:, None, None]
    return 3 * torch.cat([mixed, 2 * mixed.flip(1)], dim=1)


def geometry(window: tuple[int, int], align: bool = False) -> Geometry:
    low = -(-window[0] // PATCH), -(-window[1] // PATCH)
    return Geometry(low, (low[0] * PATCH, low[1] * PATCH), align)


def view_of(image: Tensor, window: tuple[int, int], stride: tuple[int, int], mirrored: bool = False) -> View:
    seen = image.flip(-1) if mirrored else image

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        cut = seen[:, top : top + height, left : left + width].contiguous()
        assert cut.shape[1:] == (height, width), "windows must lie inside the picture"
        return cut

    return View(read, (image.shape[1], image.shape[2]), mirrored, window, stride)


def canvas(view: View, rule: str = "mmseg", align: bool = False) -> Tensor:
    """The textbook way: full-size logits of each window on a canvas, divided by a count, turned back."""
    height, width = view.size
    window = min(view.window[0], height), min(view.window[1], width)
    total, count = torch.zeros(CLASSES, height, width), torch.zeros(height, width)
    for top in window_starts(height, view.window[0], view.stride[0], rule):
        for left in window_starts(width, view.window[1], view.stride[1], rule):
            low = run(view.read(top, left, *window)[None])
            full = interpolate(low, geometry(window).padded, mode="bilinear", align_corners=align)[0]
            where = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, *where] += full[:, : window[0], : window[1]]
            count[where] += 1
    mean = total / count
    return mean.flip(-1) if view.mirrored else mean


def scores(views: list[View], size: tuple[int, int], probabilities: bool, **options) -> Tensor:
    parts = [interpolate(canvas(v, **options)[None], size, mode="bilinear", align_corners=False)[0] for v in views]
    if len(parts) == 1:
        return parts[0]
    return torch.stack([part.softmax(0) if probabilities else part for part in parts]).mean(0)


def finish(assembly: Assembly, batch: int = 3) -> Assembly:
    (done,) = assemble([assembly], run, lambda *_: batch, lambda _: 0)
    assert done is assembly
    return assembly


def merged(views: list[View], size: tuple[int, int], **options) -> Tensor:
    rows: list[Tensor] = []

    def take(first: int, scores: Tensor) -> None:
        assert first == sum(part.shape[1] for part in rows)
        rows.append(scores)

    finish(Assembly(views, size, CLASSES, options.pop("shape", geometry), take_rows=take, **options))
    return torch.cat(rows, 1)


def assert_same_classes(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal, but for pixels whose two best scores are closer than what rounding may change."""
    first, second = expected.topk(2, dim=0).values
    sure = first - second > tolerance
    assert sure.float().mean() > 0.99
    assert torch.equal(found[sure].long(), expected.argmax(0)[sure])


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_views_give_the_scores_of_the_textbook(data):
    size = data.draw(st.integers(1, 300), "height"), data.draw(st.integers(1, 90), "width")
    views = []
    for _ in range(data.draw(st.integers(1, 3), "views")):
        shape = data.draw(st.integers(1, 250)), data.draw(st.integers(1, 80))
        window = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
        stride = tuple(data.draw(st.integers(max(1, side // 3), side)) for side in window)
        image = torch.randn(3, *shape, generator=torch.Generator().manual_seed(shape[0] * 100 + shape[1]))
        views.append(view_of(image, window, stride, data.draw(st.booleans())))
    options = {"rule": data.draw(st.sampled_from(["mmseg", "segmenter", "paddleseg"]))}
    align, probabilities = data.draw(st.booleans()), data.draw(st.booleans())
    found = merged(views, size, probabilities=probabilities, shape=lambda w: geometry(w, align), **options)
    expected = scores(views, size, probabilities, align=align, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probabilities", [True, False])
@pytest.mark.parametrize("ratios", [(1.0,), (0.75, 1.0, 1.5)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("columns", [(0, 150), (37, 91)])
def test_classes_are_the_largest_scores(ratios, flip, probabilities, columns):
    base = interpolate(torch.randn(1, 3, 20, 30), (100, 150), mode="bicubic")
    views = []
    for ratio in ratios:
        image = interpolate(base, (int(100 * ratio), int(150 * ratio)), mode="bilinear")[0]
        for mirrored in (False, True) if flip else (False,):
            views.append(view_of(image, (40, 30), (25, 20), mirrored))
    labels = torch.randint(0, CLASSES, (100, columns[1] - columns[0]), dtype=torch.uint8)
    labels[:9] = 255
    done = finish(
        Assembly(views, (100, 150), CLASSES, geometry, probabilities=probabilities, columns=columns, labels=labels)
    )
    assert done.classes.dtype == torch.uint8
    assert_same_classes(done.classes, scores(views, (100, 150), probabilities)[..., slice(*columns)])
    counted = labels != 255
    cells = torch.bincount(labels[counted].long() * CLASSES + done.classes[counted], minlength=CLASSES**2)
    assert torch.equal(done.counts, cells.reshape(CLASSES, CLASSES))


def test_classes_come_from_a_card_in_one_copy_and_are_counted_here(monkeypatch):
    """Any device but the processor: nothing is brought over, or counted, before the picture is done."""
    views = [view_of(torch.randn(3, 300, 70), (40, 30), (25, 20), mirrored) for mirrored in (False, True)]
    labels = torch.randint(0, CLASSES, (300, 70), dtype=torch.uint8)
    here = finish(Assembly(views, (300, 70), CLASSES, geometry, labels=labels))
    monkeypatch.setattr("setr_fast.engine.views._apart", lambda device: True)
    copies, copy = [], Assembly._fetch
    monkeypatch.setattr(Assembly, "_fetch", lambda self: (copies.append(self._done), copy(self)))
    there = finish(Assembly(views, (300, 70), CLASSES, geometry, labels=labels))
    assert copies == [300]
    assert torch.equal(there.classes, here.classes)
    assert torch.equal(there.counts, here.counts)


def test_one_pass_at_the_pictures_size_equals_the_general_way():
    view = view_of(torch.randn(3, 50, 31), (50, 31), (50, 31))
    labels = torch.randint(0, CLASSES, (50, 31), dtype=torch.uint8)
    direct = finish(Assembly([view], (50, 31), CLASSES, geometry, labels=labels))
    assert torch.equal(direct.classes.long(), merged([view], (50, 31)).argmax(0))
    assert int(direct.counts.sum()) == 50 * 31


def test_first_of_equal_scores_wins():
    view = view_of(torch.zeros(3, 9, 9), (4, 4), (3, 3))
    assert (finish(Assembly([view], (9, 9), CLASSES, geometry)).classes == 0).all()


def test_several_pictures_share_their_batches():
    views = [view_of(torch.randn(3, 40 + 9 * i, 50), (32, 32), (20, 20)) for i in range(5)]
    parts = [Assembly([view], view.size, CLASSES, geometry) for view in views]
    sizes: list[int] = []

    def counted(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return run(batch)

    done = list(assemble(iter(parts), counted, lambda *_: 8, lambda _: 10**9))
    assert [id(part) for part in done] == [id(part) for part in parts]
    assert sizes[:-1] == [8] * (len(sizes) - 1), "only the last batch may be short"
    for part, view in zip(done, views, strict=True):
        assert_same_classes(part.classes, scores([view], view.size, True))


def test_pictures_wait_outside_when_memory_is_short():
    views = [view_of(torch.randn(3, 64, 64), (32, 32), (20, 20)) for _ in range(6)]
    opened: list[int] = []

    def coming():
        for index, view in enumerate(views):
            opened.append(index)
            yield Assembly([view], view.size, CLASSES, geometry)

    for finished, _ in enumerate(assemble(coming(), run, lambda *_: 100, lambda _: 1)):
        assert len(opened) <= finished + 2, "one in work, one next in line"


@pytest.mark.parametrize("ratio", [1, 2])
def test_what_is_held_does_not_grow_with_the_height(ratio):
    held = []
    for height in (1_000, 20_000):
        view = view_of(torch.zeros(3, height, 40), (64, 40), (40, 40))
        held.append(Assembly([view], (height * ratio, 40), CLASSES, geometry).values())
    assert held[0] == held[1] < CLASSES * (ROWS + 3 * 64) * 40 / PATCH**2 * 4


def test_rows_of_windows_are_forgotten_and_their_room_is_used_again():
    image = torch.randn(3, 3_000, 20)
    view = view_of(image, (48, 20), (32, 20))
    part = Assembly([view], (3_000, 20), CLASSES, geometry)
    assert part.values() < 10 * 12 * CLASSES * 12 * 5
    assert_same_classes(finish(part, batch=2).classes, canvas(view))


def test_requests_name_every_window_once():
    view = view_of(torch.zeros(3, 100, 90), (32, 32), (20, 20))
    part = Assembly([view, view], (100, 90), CLASSES, geometry)
    seen = [(r.view, r.top, r.left) for r in part.requests()]
    starts = window_starts(100, 32, 20), window_starts(90, 32, 20)
    assert sorted(seen) == [(v, t, s) for v in range(2) for t in starts[0] for s in starts[1]]
    assert all(a[1] <= b[1] for a, b in pairwise(seen))


MEASURE = """
import numpy as np, re, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.engine.conftest import TinyModel, TinySpec
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
model = TinyModel(TinySpec(num_classes=150, image_size=(128, 128), patch_size=16)).eval()
peaks = []
for height in (600, 6000):
    predict(model, np.zeros((height, 500, 3), np.uint8), InferenceConfig(mode="slide", flip=True, window_batch=2))
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
print((peaks[1] - peaks[0]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_peak_memory_hardly_grows_with_the_picture(request):
    """Of a picture ten times as high: its pixels (8 MiB), its classes (3 MiB), not its logits (1.6 GiB)."""
    root = str(request.config.rootpath)
    code = MEASURE.format(root=root)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert float(done.stdout) < 40


def test_wide_classes_are_16_bit():
    def many(batch: Tensor) -> Tensor:
        return torch.cat([batch.new_zeros(len(batch), 299, *batch.shape[2:]), batch[:, :1] + 1], 1)

    view = view_of(torch.zeros(3, 5, 5), (4, 4), (3, 3))
    part = Assembly([view], (5, 5), 300, lambda window: Geometry(window, window, False))
    (done,) = assemble([part], many, lambda *_: 1, lambda _: 0)
    assert done.classes.dtype == torch.int16
    np.testing.assert_array_equal(done.classes.numpy(), 299)
