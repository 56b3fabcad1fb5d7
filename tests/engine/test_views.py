"""Merging views in strips and bands: against whole tensors, and what it holds in memory."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from setr_fast.engine import views as module
from setr_fast.engine.resample import RowFeed, sources
from setr_fast.engine.views import View, class_map, strips
from setr_fast.engine.windows import averaged_rows

CLASSES = 6


def run(batch: Tensor) -> Tensor:
    mixed = batch + batch.mean((2, 3), keepdim=True) * torch.arange(1.0, 4.0)[:, None, None]
    return torch.cat([mixed, 2 * mixed.flip(1)], dim=1)


def view_of(image: Tensor, window: tuple[int, int], stride: tuple[int, int], mirrored: bool = False) -> View:
    seen = image.flip(-1) if mirrored else image

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        return seen[:, top : top + height, left : left + width].contiguous()

    return View(read, tuple(image.shape[1:]), mirrored, window, stride)


def canvas(view: View) -> Tensor:
    logits = torch.cat(list(averaged_rows(run, view.read, view.size, window=view.window, stride=view.stride)), 1)
    return logits.flip(-1) if view.mirrored else logits


def scores(views: list[View], size: tuple[int, int], probabilities: bool) -> Tensor:
    logits = [interpolate(canvas(v)[None], size, mode="bilinear", align_corners=False)[0] for v in views]
    if len(views) == 1:
        return logits[0]
    return torch.stack([part.softmax(0) if probabilities else part for part in logits]).mean(0)


def assert_same_classes(found: np.ndarray, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal, but for pixels whose two best scores are closer than what rounding may change."""
    first, second = expected.topk(2, dim=0).values
    sure = (first - second > tolerance).numpy()
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure], expected.argmax(0).numpy()[sure])


@pytest.mark.parametrize("size", [(130, 70), (90, 141), (61, 35), (130, 35), (1, 70), (400, 1)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rows_resized_as_they_come_equal_resizing_the_whole(size, mirrored):
    view = view_of(torch.randn(3, 130, 70), (40, 30), (25, 20), mirrored)
    expected = interpolate(canvas(view)[None], size, mode="bilinear", align_corners=False)[0]
    begin, end = size[1] // 3, max(size[1] * 2 // 3, size[1] // 3 + 1)
    feed = view.rows(run, size, (begin, end), "mmseg", 3)
    steps = [*range(0, size[0], 17), size[0]]
    found = torch.cat([feed.rows(a, b) for a, b in pairwise(steps)], dim=1)
    torch.testing.assert_close(found, expected[:, :, begin:end], rtol=1e-5, atol=1e-5)


def test_rows_pass_unchanged_where_the_size_is_the_same():
    view = view_of(torch.randn(3, 50, 30), (50, 30), (50, 30))
    assert torch.equal(view.rows(run, (50, 30), (0, 30), "mmseg", 1).rows(0, 50), canvas(view))


@pytest.mark.parametrize("probabilities", [True, False])
@pytest.mark.parametrize("budget", [2**30, 40_000])
@pytest.mark.parametrize("ratios", [(1.0,), (0.75, 1.0, 1.5)])
@pytest.mark.parametrize("flip", [False, True])
def test_class_map_equals_the_straightforward_mean(ratios, flip, budget, probabilities):
    base = interpolate(torch.randn(1, 3, 20, 30), (100, 150), mode="bicubic")
    views = []
    for ratio in ratios:
        image = interpolate(base, (int(100 * ratio), int(150 * ratio)), mode="bilinear")[0]
        for mirrored in (False, True) if flip else (False,):
            views.append(view_of(image, (40, 30), (25, 20), mirrored))
    found = class_map(run, views, (100, 150), CLASSES, probabilities=probabilities, budget=budget, batch=2)
    assert found.dtype == np.uint8
    assert_same_classes(found, scores(views, (100, 150), probabilities))


def test_first_of_equal_scores_wins():
    view = view_of(torch.zeros(3, 9, 9), (4, 4), (3, 3))
    assert (class_map(run, [view], (9, 9), CLASSES) == 0).all()


def test_more_than_256_classes_are_16_bit():
    def many(batch: Tensor) -> Tensor:
        return torch.cat([batch.new_zeros(len(batch), 299, *batch.shape[2:]), batch[:, :1] + 1], 1)

    found = class_map(many, [view_of(torch.zeros(3, 5, 5), (4, 4), (3, 3))], (5, 5), 300)
    assert found.dtype == np.uint16
    assert (found == 299).all()


def test_strips_cover_the_picture_once_and_are_never_narrower_than_a_window():
    view = view_of(torch.zeros(3, 64, 1000), (32, 32), (21, 21))
    for budget in (1, 200_000, 2**40):
        edges = list(strips([view], (64, 1000), CLASSES, budget))
        assert edges[0][0] == 0
        assert edges[-1][1] == 1000
        assert all(a[1] == b[0] for a, b in pairwise(edges))
        assert min(end - begin for begin, end in edges) >= 31
    assert len(list(strips([view], (64, 1000), CLASSES, 2**40))) == 1
    whole = view_of(torch.zeros(3, 64, 1000), (64, 1000), (64, 1000))
    assert list(strips([whole], (64, 1000), CLASSES, 1)) == [(0, 1000)]  # one pass is never repeated


def test_source_columns_are_those_that_the_taps_read():
    assert sources(0, 10, 10, 10) == (0, 10)
    assert sources(3, 4, 10, 10) == (3, 4)
    assert sources(0, 100, 100, 7) == (0, 7)
    assert sources(0, 1, 4, 8) == (0, 2)


class _Held:
    """Largest band and largest number of rows waiting in a feed, seen from outside."""

    band = 0
    waiting = 0


def test_a_tall_picture_is_held_one_band_at_a_time(monkeypatch):
    """Peak of the canvas depends on the window's height and the width, not on the picture's height."""
    peaks = []
    for height in (300, 3000):
        held = _Held()

        class Watched(RowFeed):
            def rows(self, begin, end, held=held):
                result = super().rows(begin, end)
                held.waiting = max(held.waiting, sum(block.shape[1] for block in self._held))
                return result

        def counted(run_, *args, held=held, **options):
            for block in averaged_rows(run_, *args, **options):
                held.band = max(held.band, block.untyped_storage().nbytes())
                yield block

        monkeypatch.setattr(module, "RowFeed", Watched)
        monkeypatch.setattr(module, "averaged_rows", counted)
        view = view_of(torch.randn(3, height, 64), (48, 48), (32, 32))
        class_map(run, [view], (height * 2, 128), CLASSES, batch=2)
        peaks.append((held.band, held.waiting))
    for band, waiting in peaks:
        assert 0 < band <= CLASSES * 48 * 64 * 4
        assert 0 < waiting <= 48 + module.OUTPUT_ROWS


def test_host_memory_beside_the_class_map_does_not_grow_with_the_picture():
    """Arrays and lists of the host: only the class map itself, one byte per pixel, may grow."""
    extra = []
    for height in (2_000, 20_000):
        view = view_of(torch.zeros(3, height, 40), (40, 40), (30, 30))
        tracemalloc.start()
        found = class_map(run, [view], (height, 40), CLASSES)
        extra.append(tracemalloc.get_traced_memory()[1] - found.nbytes)
        tracemalloc.stop()
    assert extra[1] - extra[0] < 300_000  # 18 000 more rows; their logits would be 17 MB
