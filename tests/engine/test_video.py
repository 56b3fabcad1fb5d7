"""Frames of a video: one at a time, however long it is."""

from __future__ import annotations

import sys
import types
import weakref

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
        streams = types.SimpleNamespace(video=[0])

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
            predict(model, frame, InferenceConfig(flip=True))
        most = max(most, sum(reference() is not None for reference in alive))
    assert number == 199
    assert most <= 3, "this frame, the one before, and its rotated view"
