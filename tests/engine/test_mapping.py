"""Weights as pages of their file: what is given back, and that nothing is lost by it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from setr_fast.models.mapping import mapped_tensors, release
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.models.store import WEIGHTS_FILE, load_model, save_model
from setr_fast.precision.rounding import int8_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages are in memory")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"width": 256, "depth": 4, "num_heads": 4, "taps": (3,), "aux_levels": (), "head_channels": 16}
    model = create_model("setr_naive_vit_t16", num_classes=5, image_size=64, **sizes)
    path = tmp_path_factory.mktemp("mapped") / "model"
    save_model(model, path)
    return path


def resident(folder: Path) -> int:
    """Bytes of the weights file that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            inside = line.endswith(str(folder / WEIGHTS_FILE))
        elif words[0] == "Rss:" and inside:
            found += int(words[1]) * 1024
    return found


def test_loading_leaves_no_weight_in_memory_and_reads_it_on_use(folder: Path) -> None:
    whole = (folder / WEIGHTS_FILE).stat().st_size
    model, copied = load_model(folder, mapped=True), load_model(folder)
    release(model.parameters())
    assert resident(folder) < 0.2 * whole
    for name, tensor in copied.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert resident(folder) > 0.8 * whole


def test_a_weight_that_was_written_to_is_not_lost(folder: Path) -> None:
    model = load_model(folder, mapped=True)
    with torch.no_grad():
        model.encoder.blocks[1].mlp.fc1.weight.data.fill_(3.0)
    release(model.parameters())
    assert bool((model.encoder.blocks[1].mlp.fc1.weight == 3.0).all())
    again = mapped_tensors(folder / WEIGHTS_FILE)["encoder.blocks.1.mlp.fc1.weight"]
    assert not bool((again == 3.0).any()), "the file stays what it was"


def test_int8_drops_the_weights_that_it_has_rounded(folder: Path) -> None:
    model: SegmentationModel = load_model(folder, mapped=True)
    blocks = sum(parameter.nbytes for parameter in model.encoder.blocks.parameters())
    windows = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        plain = model.logits(windows)
        assert resident(folder) > blocks
        int8_model(model, windows, goal=0.0)
        assert resident(folder) < 0.3 * blocks
        torch.testing.assert_close(model.logits(windows), plain)
