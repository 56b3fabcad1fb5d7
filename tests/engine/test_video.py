"""Frames of a video: one at a time, however long it is."""

from __future__ import annotations

import sys
import types
import weakref
from fractions import Fraction

import numpy as np

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.engine.video import frames


def test_frames_are_made_when_asked_for_and_forgotten(tmp_path, monkeypatch, make_model):
    alive: list[weakref.ref] = []

    class Frame:
        rotation = 0

        def __init__(self, number: int) -> None:
            self.number = number

        def to_ndarray(self, format: str) -> np.ndarray:
            picture = np.full((40, 40, 3), self.number % 251, np.uint8)
            alive.append(weakref.ref(picture))
            return picture

    class Container:
        streams = types.SimpleNamespace(video=[types.SimpleNamespace()])

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def decode(self, video):
            yield from (Frame(number) for number in range(200))

    module = types.ModuleType("av")
    module.FFmpegError = type("FFmpegError", (ValueError,), {})
    module.open = lambda path: Container()
    monkeypatch.setitem(sys.modules, "av", module)
    (tmp_path / "long.mp4").touch()
    model, most = make_model(), 0
    for number, frame in enumerate(frames(tmp_path / "long.mp4")):
        if number % 20 == 0:
            predict(model, frame.pixels, InferenceConfig(flip=True))
        most = max(most, sum(reference() is not None for reference in alive))
    assert number == 199
    assert most <= 3, "this frame, the one before, and its rotated view"


def _film(times: list[int | None], rotation: int = 0) -> types.ModuleType:
    stream = types.SimpleNamespace(time_base=Fraction(1, 100), average_rate=Fraction(25))
    shown = [
        types.SimpleNamespace(pts=time, rotation=rotation, to_ndarray=lambda format: np.zeros((4, 6, 3), np.uint8))
        for time in times
    ]

    class Container:
        streams = types.SimpleNamespace(video=[stream])

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def decode(self, video):
            yield from shown

    module = types.ModuleType("av")
    module.FFmpegError = type("FFmpegError", (ValueError,), {})
    module.open = lambda path: Container()
    return module


def test_frames_without_a_time_follow_their_predecessor(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", _film([None, 30, None, 33, 33, 100], rotation=90))
    (tmp_path / "a.mp4").touch()
    found = list(frames(tmp_path / "a.mp4"))
    assert [frame.time for frame in found] == [0, 30, 34, 38, 42, 100]
    assert found[1].seconds == 0.3
    assert {frame.pixels.shape for frame in found} == {(6, 4, 3)}, "upright"
