"""Window starts, and the streamed mean against a whole canvas."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from setr_fast.engine.windows import averaged_rows, window_starts
from setr_fast.errors import ConfigError


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (2049, 768, 512, [0, 512, 1024, 1281]),
        (1025, 768, 512, [0, 257]),
        (683, 512, 341, [0, 171]),
        (512, 512, 341, [0]),
        (1, 512, 341, [0]),
    ],
)
def test_starts_are_those_of_mmsegmentation(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (2048, 768, 512, [0, 512, 1024, 1280]),
        (2048, 768, 736, [0, 736, 1280]),
        (683, 512, 480, [0, 171]),
        (512, 512, 480, [0]),
        (3, 512, 480, [0]),
    ],
)
def test_starts_are_those_of_official_segmenter(length, window, stride, starts):
    assert window_starts(length, window, stride, "segmenter") == starts


@given(st.integers(1, 3000), st.integers(1, 900), st.integers(1, 900))
def test_every_rule_covers_every_pixel_and_stays_inside(length, window, stride):
    if stride > window:
        with pytest.raises(ConfigError, match="stride must be 1 to the window"):
            window_starts(length, window, stride)
        return
    for rule in ("mmseg", "segmenter", "paddleseg"):
        starts = window_starts(length, window, stride, rule)
        assert starts == sorted(set(starts))
        assert starts[0] == 0
        assert starts[-1] == max(length - window, 0)
        assert all(b - a <= window for a, b in pairwise(starts))
    assert window_starts(length, window, stride, "paddleseg") == window_starts(length, window, stride, "mmseg")


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="rule must be"):
        window_starts(10, 5, 3, "other")


def _run(batch: Tensor) -> Tensor:
    """Logits that depend on the whole window, so that overlapping windows disagree."""
    mixed = batch + batch.mean((2, 3), keepdim=True) * torch.arange(1.0, 4.0)[:, None, None]
    return torch.cat([mixed, mixed.flip(1) ** 2], dim=1)


def _naive(image: Tensor, window: tuple[int, int], stride: tuple[int, int], rule: str) -> Tensor:
    height, width = image.shape[1:]
    total, count = torch.zeros(6, height, width), torch.zeros(1, height, width)
    for top in window_starts(height, window[0], stride[0], rule):
        for left in window_starts(width, window[1], stride[1], rule):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, rows, columns] += _run(image[None, :, rows, columns].contiguous())[0]
            count[:, rows, columns] += 1
    return total / count


def _stream(image: Tensor, **options) -> list[Tensor]:
    def read(top: int, left: int, height: int, width: int) -> Tensor:
        cut = image[:, top : top + height, left : left + width]
        assert cut.shape[1:] == (height, width), "windows must lie inside the picture"
        return cut

    return list(averaged_rows(_run, read, tuple(image.shape[1:]), **options))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_streamed_mean_equals_the_whole_canvas_bit_for_bit(data):
    height, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 60))
    window = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    stride = tuple(data.draw(st.integers(max(1, side // 5), side)) for side in window)
    rule = data.draw(st.sampled_from(["mmseg", "segmenter", "paddleseg"]))
    image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    blocks = _stream(image, window=window, stride=stride, rule=rule, batch=1)
    assert torch.equal(torch.cat(blocks, dim=1), _naive(image, window, stride, rule))


@pytest.mark.parametrize("batch", [2, 3, 7, 100])
def test_windows_that_run_together_give_the_same_mean(batch):
    image = torch.randn(3, 75, 64)
    blocks = _stream(image, window=(30, 20), stride=(11, 13), batch=batch)
    torch.testing.assert_close(torch.cat(blocks, 1), _naive(image, (30, 20), (11, 13), "mmseg"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("columns", [(0, 1), (5, 30), (40, 64), (63, 64)])
def test_columns_alone_are_the_columns_of_the_whole(columns):
    image = torch.randn(3, 50, 64)
    options = {"window": (30, 20), "stride": (20, 13)}
    part = torch.cat(_stream(image, **options, columns=columns), 1)
    assert torch.equal(part, torch.cat(_stream(image, **options), 1)[:, :, slice(*columns)])
