"""How many pictures wait is a matter of the memory budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from setr_fast.data.reading import PictureReader
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predict_command import predict_files
from setr_fast.engine.predictor import predict
from setr_fast.engine.runner import Runner
from setr_fast.engine.views import sent
from setr_fast.engine.waiting import picture_bytes, waiting_room, with_waiting_room
from setr_fast.errors import ConfigError

MIB = 2**20


def test_a_quarter_of_a_budget_waits_and_nothing_of_a_small_one():
    assert waiting_room(2048 * MIB) == 512 * MIB
    assert waiting_room(200 * MIB) == 0
    for need in (1, 100 * MIB, 256 * MIB, 256 * MIB + 1, 300 * MIB, 2000 * MIB):
        least = with_waiting_room(need)
        assert least - waiting_room(least) >= need
        assert least - 4 - waiting_room(least - 4) < need, "the least, to some bytes"


def test_what_a_file_will_hold_is_read_from_its_header(make_picture, tmp_path):
    picture = Image.fromarray(make_picture(40, 50))
    held = {}
    for name, mode in (("a.jpg", "RGB"), ("a.png", "RGB"), ("b.png", "RGBA"), ("a.webp", "RGB")):
        picture.convert(mode).save(tmp_path / name)
        held[name] = picture_bytes(tmp_path / name, 3, "none") / 2000
    np.save(tmp_path / "a.npy", make_picture(40, 50))
    assert held["a.jpg"] == held["a.png"] >= 13
    assert held["b.png"] > held["a.png"]
    assert held["a.webp"] > held["b.png"]
    assert picture_bytes(tmp_path / "a.jpg", 3, "png") > picture_bytes(tmp_path / "a.jpg", 3, "jpg")
    assert picture_bytes(tmp_path / "a.npy", 3, "jpg") >= 2000 * 24 * 3
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    for name in ("cut.png", "none.jpg"):
        assert picture_bytes(tmp_path / name, 3, "jpg") == 0, "its reading says what is wrong"
    assert picture_bytes(tmp_path / "a.jpg", 3, "jpg", max_pixels=10) == 0, "as does reading one that is too large"


def test_a_budget_that_is_too_small_says_the_least_that_works_beside_waiting_pictures(make_model, make_picture):
    model, picture = make_model(image_size=(1024, 1024)), make_picture(600, 700)
    with pytest.raises(ConfigError, match=r"must be at least \d+MiB .* got 300MiB") as caught:
        predict(model, picture, InferenceConfig(memory_budget="300MiB"), waiting=waiting_room(300 * MIB))
    least = int(str(caught.value).split("at least ")[1].split("MiB")[0])
    predict(model, picture, InferenceConfig(memory_budget=f"{least}MiB"), waiting=waiting_room(least * MIB))
    assert str(caught.value).count("\n") == 0


def test_few_large_pictures_are_read_ahead(make_model, make_picture, tmp_path, monkeypatch):
    files = [tmp_path / f"{index}.png" for index in range(6)]
    for file in files:
        Image.fromarray(make_picture(32, 40)).save(file)
    (tmp_path / "out").mkdir()
    read: list[int] = []
    seen: list[int] = []
    file_of = PictureReader.file

    def counted(*args, **named):
        seen.append(len(read) - len(seen))
        return predict(*args, **named)

    monkeypatch.setattr("setr_fast.engine.predict_command.predict", counted)
    monkeypatch.setattr("setr_fast.engine.pipeline.stage_threads", lambda in_turns: 4)
    monkeypatch.setattr("setr_fast.engine.predict_command.picture_bytes", lambda *args: waiting_room(2048 * MIB) // 2)
    monkeypatch.setattr(PictureReader, "file", lambda *args: read.append(0) or file_of(*args))
    predict_files(make_model(), files, tmp_path / "out", InferenceConfig())
    assert len(seen) == 6
    assert max(seen) <= 2, "the one that is computed, and one ahead"


def test_windows_are_pinned_for_a_card_only(make_model, make_picture, monkeypatch):
    model, picture = make_model(), make_picture(60, 90)
    want = predict(model, picture)

    calls: list[object] = []

    class Windows:
        device = torch.device("cpu")

        def pin_memory(self):
            calls.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            calls.append((device.type, non_blocking))
            return self

    sent(Windows(), torch.device("cuda"))
    sent(Windows(), torch.device("cpu"))
    assert calls == ["pinned", ("cuda", True), ("cpu", False)]
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pytest.fail("pinned without a card"))
    np.testing.assert_array_equal(predict(model, picture, InferenceConfig(window_batch=2)), want)
    windows = torch.randn(4, 3, 32, 32)
    runner = Runner(model, InferenceConfig())
    with torch.inference_mode():
        torch.testing.assert_close(runner.run(windows)[2], runner.run(windows[2:3])[0])
