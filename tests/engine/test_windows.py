"""Where windows start."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setr_fast.engine.windows import window_starts
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


@settings(deadline=None)
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
