"""What the memory budget allows against what a fresh process is seen to hold."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status"),
]
FIELD = """
import json, re, sys
from pathlib import Path
import numpy as np, torch
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.engine.sizes import parse_bytes
from setr_fast.errors import ConfigError
from setr_fast.models.model import create_model
def field(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
torch.set_num_threads(1)
"""
PICTURE = (
    FIELD
    + """
import ctypes
name, classes, window, options, height, width, budget = json.loads(sys.argv[1])
taps = (0, 1) if "setr" in name else (1,)
sizes = {"depth": 2, "taps": taps, "aux_levels": taps if "mla" in name else (), "drop_path": 0.0}
sizes |= {} if "setr" in name else {"decoder_drop_path": 0.0}
model = create_model(name, classes, window, **sizes).eval()
picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
if budget == "least":
    try:
        predict(model, picture, InferenceConfig(memory_budget="1MiB", **options))
    except ConfigError as error:
        budget = re.search(r"at least (\\d+MiB)", str(error))[1]
predict(model, np.zeros((64, 64, 3), np.uint8), InferenceConfig(mode="whole"))  # what the libraries keep for good
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = field("VmRSS")
predict(model, picture, InferenceConfig(memory_budget=budget, **options))
print(json.dumps([parse_bytes(budget) / 2**20, field("VmHWM") - before]))
"""
)
VIDEO = (
    FIELD
    + """
import av
from fractions import Fraction
from setr_fast.engine.video import frames, writing
source, made, count = Path(sys.argv[1]) / "in.mp4", Path(sys.argv[1]) / "out.mp4", int(sys.argv[2])
noise = np.random.default_rng(0).integers(0, 255, (112, 128, 3), dtype=np.uint8)
with av.open(str(source), "w") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for at in range(count):
        part = np.ascontiguousarray(noise[at % 64 : at % 64 + 48, at % 64 : at % 64 + 64])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
    container.mux(stream.encode())
model = create_model("setr_naive_vit_t16", 19, 32, width=32, depth=2, num_heads=2, head_channels=16).eval()
held = []
with writing(made) as writer:
    for number, frame in enumerate(frames(source), 1):
        classes = predict(model, frame.pixels, InferenceConfig(mode="slide", stride=(32, 32)))
        writer.add(frame, np.repeat(classes[..., None] * 13, 3, 2))
        if number % (count // 6) == 0:
            held.append(field("VmRSS"))
print(json.dumps([number, held]))
"""
)

FOLDER = (
    FIELD
    + """
import contextlib, ctypes, io
from PIL import Image
from setr_fast.engine import pipeline
from setr_fast.engine.predict_command import predict_files
from setr_fast.engine.waiting import picture_bytes, waiting_room
folder, budget = Path(sys.argv[1]), parse_bytes(sys.argv[2])
coarse = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
for number, size in enumerate([(4000, 3000)] * 3 + [(7744, 5184)] + [(4000, 3000)] * 3):
    Image.fromarray(coarse).resize(size).save(folder / f"{number}.jpg")
files = sorted(folder.iterdir())
pipeline.stage_threads = lambda in_turns: 4  # as on a machine of 16 cores
model = create_model("setr_naive_vit_t16", 5, 512, width=32, depth=1, num_heads=2, taps=(0,), head_channels=8).eval()
predict(model, np.zeros((64, 64, 3), np.uint8), InferenceConfig(mode="whole"))
(folder / "out").mkdir()
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = field("VmRSS")
with contextlib.redirect_stdout(io.StringIO()):
    predict_files(model, files, folder / "out", InferenceConfig(memory_budget=sys.argv[2], stride=(512, 512)))
room, largest = waiting_room(budget), max(picture_bytes(file, 3, "jpg") for file in files)
allowed = budget - room + max(room, largest)
print(json.dumps([len(list((folder / "out").iterdir())), allowed / 2**20, field("VmHWM") - before]))
"""
)


def _run(code: str, *arguments: str, root: str) -> list:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=root, env=None, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


SLIDE, WHOLE = {"mode": "slide"}, {"mode": "whole"}
SCALES = {"flip": True, "scales": [0.5, 1.0, 1.5]}
WIDE = {"stride": [512, 512]}
BF16, INT8 = {"precision": "bf16"}, {"precision": "int8"}


@pytest.mark.parametrize(
    ("name", "classes", "window", "options", "size", "budget", "used"),
    [
        ("setr_naive_vit_t16", 19, 128, SLIDE | {"flip": True}, (300, 400), "least", 0.0),
        ("setr_naive_vit_t16", 150, 256, SLIDE | SCALES, (500, 700), "128MiB", 0.4),
        ("setr_pup_vit_t16", 150, 128, SLIDE, (300, 400), "least", 0.5),
        ("setr_pup_vit_t16", 150, 256, SLIDE | {"flip": True}, (600, 800), "512MiB", 0.6),
        ("setr_pup_vit_t16", 150, 256, WHOLE | {"flip": True}, (512, 768), "least", 0.7),
        ("setr_pup_vit_t16", 150, 512, SLIDE | WIDE | {"flip": True}, (1536, 4096), "2GiB", 0.5),
        ("setr_mla_vit_t16", 150, 256, SLIDE | {"flip": True}, (600, 800), "256MiB", 0.6),
        ("segmenter_mask_vit_t16", 150, 256, SLIDE, (700, 900), "256MiB", 0.2),
        ("setr_naive_vit_t16", 19, 128, WHOLE | SCALES, (512, 768), "least", 0.5),
        ("setr_naive_vit_t16", 19, 512, SLIDE | WIDE, (5184, 7744), "512MiB", 0.4),
        ("setr_naive_vit_b16", 19, 128, SLIDE | BF16, (300, 400), "least", 0.5),
        ("setr_pup_vit_s16", 150, 256, SLIDE | BF16 | {"flip": True}, (600, 800), "256MiB", 0.4),
        ("setr_pup_vit_s16", 150, 256, SLIDE | INT8, (600, 800), "256MiB", 0.4),
        ("segmenter_mask_vit_s16", 150, 256, SLIDE | INT8, (300, 400), "least", 0.4),
    ],
)
def test_the_budget_is_kept_and_used(request, name, classes, window, options, size, budget, used):
    arguments = json.dumps([name, classes, window, options, *size, budget])
    budget_mib, peak_mib = _run(PICTURE, arguments, root=str(request.config.rootpath))
    print(f"{peak_mib:.1f} of {budget_mib:.1f} MiB")
    assert used * budget_mib <= peak_mib <= budget_mib


def test_a_long_video_takes_no_more_memory_than_a_short_one(request, tmp_path):
    pytest.importorskip("av")
    number, held = _run(VIDEO, str(tmp_path), "300", root=str(request.config.rootpath))
    assert number == 300
    assert max(held[1:]) - held[0] <= 6, held


@pytest.mark.parametrize("budget", ["512MiB", "2GiB"])
def test_pictures_that_wait_are_in_the_budget_and_a_large_one_goes_alone(request, tmp_path, budget):
    files, allowed_mib, peak_mib = _run(FOLDER, str(tmp_path), budget, root=str(request.config.rootpath))
    print(f"{peak_mib:.1f} of {allowed_mib:.1f} MiB")
    assert files == 14
    assert peak_mib <= allowed_mib
