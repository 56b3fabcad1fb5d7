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
from setr_fast.engine.predictor import predict, settled
from setr_fast.engine.runner import Runner
from setr_fast.models.model import create_model
def field(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
torch.set_num_threads(1)
"""
PICTURE = (
    FIELD
    + """
name, classes, window, mode, height, width, budget = json.loads(sys.argv[1])
model = create_model(name, classes, window).eval()
config = InferenceConfig(mode=mode, memory_budget=budget, flip=True)
predict(model, np.zeros((64, 64, 3), np.uint8), InferenceConfig(mode="whole"))  # what the libraries keep for good
runner = Runner(model, settled(config, model))
seen = (window, window) if mode == "slide" else (height, width)
together = min(runner.batch_of(seen), 2 if mode == "whole" else 10**9)  # a picture and its mirror image
picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
Path("/proc/self/clear_refs").write_text("5")
before = field("VmRSS")
predict(model, picture, config)
estimate = together * runner._window_bytes(seen) / 2**20
print(json.dumps([estimate, runner.held * 4 / 2**20, field("VmHWM") - before]))
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


def _run(code: str, *arguments: str, root: str) -> list:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=root, env=None, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "classes", "window", "mode", "size", "budget"),
    [
        ("setr_naive_vit_t16", 19, 256, "slide", (700, 900), "256MiB"),
        ("setr_pup_vit_t16", 150, 256, "slide", (700, 900), "1GiB"),
        ("setr_mla_vit_t16", 150, 256, "slide", (700, 900), "1GiB"),
        ("segmenter_mask_vit_t16", 150, 256, "slide", (700, 900), "512MiB"),
        ("setr_naive_vit_t16", 150, 512, "whole", (512, 768), "2GiB"),
    ],
)
def test_the_budget_is_near_what_is_held(request, name, classes, window, mode, size, budget):
    arguments = json.dumps([name, classes, window, mode, *size, budget])
    estimate, held, peak = _run(PICTURE, arguments, root=str(request.config.rootpath))
    assert peak <= 1.15 * (estimate + held), "windows under way, and logits that wait"
    assert peak >= 0.4 * estimate, "memory that is allowed is used"


def test_a_long_video_takes_no_more_memory_than_a_short_one(request, tmp_path):
    pytest.importorskip("av")
    number, held = _run(VIDEO, str(tmp_path), "300", root=str(request.config.rootpath))
    assert number == 300
    assert max(held[1:]) - held[0] <= 6, held
