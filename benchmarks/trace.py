"""``python -m benchmarks.trace FOLDER``: where the time of one inference and one training step goes.

Writes ``profile.txt``, a table per network and direction, and ``profile.json.gz``, a trace for chrome://tracing or
ui.perfetto.dev. ViT-L at 512 pixels on a card, a tiny network on a processor.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import DEVICE
from setr_fast.models.model import create_model

NAME, SIZE, BATCH = ("setr_pup_vit_l16", 512, 8) if DEVICE == "cuda" else ("setr_pup_vit_t16", 64, 1)
CLASSES, LINES = 150, 40


def main(arguments: list[str]) -> int:
    """Profile both directions after a warm-up."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    model = create_model(NAME, CLASSES, SIZE).to(DEVICE)
    image = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8, device=DEVICE)
    label = torch.randint(0, CLASSES, (BATCH, SIZE, SIZE), dtype=torch.uint8, device=DEVICE)

    @torch.inference_mode()
    def inference() -> None:
        model.eval().logits(image)

    def training() -> None:
        model.train().zero_grad(set_to_none=True)
        model.loss(image, label).backward()

    with (folder / "profile.txt").open("w") as out:
        for title, run in (("inference", inference), ("forward and backward", training)):
            found = _profiled(run)
            order = "self_cuda_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
            print(
                f"{NAME}, {title}, {BATCH} of {SIZE}px\n",
                found.key_averages().table(order, LINES),
                file=out,
                flush=True,
            )
    with tempfile.TemporaryDirectory() as elsewhere:
        plain = Path(elsewhere, "profile.json")
        found.export_chrome_trace(str(plain))
        (folder / "profile.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    return 0


def _profiled(run: Callable[[], None]) -> profile:
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])
    with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
        for _ in range(2):
            run()
        with profile(activities=kinds) as found:
            run()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
