"""Ahead-of-time compilation of the upsampled losses for cards that are not here: nothing may spill."""

from __future__ import annotations

import functools
import importlib

import pytest
import torch

from tests.kernels import ahead

triton = pytest.importorskip("triton", reason="needs triton, which only Linux has")
RELEASE = tuple(map(int, triton.__version__.split(".")[:2]))
kernels = importlib.import_module("setr_fast.kernels.upsample_cross_entropy")
class_sums = importlib.import_module("setr_fast.kernels.upsample_class_sums")
bilinear = importlib.import_module("setr_fast.ops._native").load()

POINTERS = {
    "labels": "*u8", "class_weights": "*fp32", "first_y": "*i32", "first_x": "*i32", "weight_y": "*fp32",
    "weight_x": "*fp32", "pixel_gradients": "*fp32", "scales": "*fp32", "losses": "*fp32", "sums": "*fp64",
    "hits": "*i32", "gradient": "*fp32", "smoothing": "fp32",
}  # fmt: skip
OF_SUMS = POINTERS | {"slopes": "*fp32", "sums": "*fp32"}
FLAGS = {
    "training": {"GRADIENT": True},
    "all_options": {"GRADIENT": True, "CLASS_WEIGHTS": True, "SMOOTHING": True},
    "map": {"LOSSES": True},
    "map_backward": {"GRADIENT": True, "PIXEL_GRADIENTS": True},
    "class_sums": {"GRADIENT": False, "SQUARED": True},
    "class_sums_backward": {"GRADIENT": True, "SQUARED": True},
}
OFF = dict.fromkeys(("CLASS_WEIGHTS", "SMOOTHING", "PIXEL_GRADIENTS", "LOSSES", "GRADIENT"), False)


@functools.cache
def build(flags: str, classes: int, dtype: str, card: int, block: int | None = None) -> tuple[int, int]:
    """Return registers and spilled bytes; ``block`` forces that many classes on one warp."""
    of_sums, gradient = flags.startswith("class_sums"), FLAGS[flags].get("GRADIENT", False)
    launch = class_sums.options_of(classes, gradient) if of_sums else kernels.launch_of(classes)
    launch |= {"BLOCK_K": block, "num_warps": 1} if block else {}
    constants = ({} if of_sums else OFF) | FLAGS[flags] | {"STRETCH": 16, "BLOCK_K": launch.pop("BLOCK_K")}
    function, kinds = (class_sums._class_cells, OF_SUMS) if of_sums else (kernels._cells, POINTERS)
    made = ahead.build(function, {"logits": f"*{dtype}", **kinds}, constants, card, **launch)
    return made.registers, made.spilled_bytes


@pytest.mark.parametrize("card", [80, 90])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(19, "bf16"), (150, "bf16"), pytest.param(150, "fp32", marks=pytest.mark.slow), (512, "fp16")],
)
def test_no_register_is_spilled(flags: str, classes: int, dtype: str, card: int) -> None:
    registers, spilled = build(flags, classes, dtype, card)
    assert spilled == 0, f"{spilled} bytes"
    most = 240 if RELEASE >= (3, 9) else 248  # 3.6 takes up to 243 below 256 classes, and spills nothing either
    assert registers <= 255 if classes > 256 else registers <= most, "eight programs of a warp must fit a processor"


def test_too_many_classes_on_one_warp_would_be_seen() -> None:
    assert build("training", 2048, "bf16", 90, block=2048)[1] > 0


@pytest.mark.skipif(bilinear is None, reason="the extension is not compiled")
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(("low", "size"), [(1, 9), (128, 512), (5, 33), (40, 9), (7, 7), (2, 1), (1, 1)])
def test_axis_tables_are_those_of_the_compiled_kernels(low: int, size: int, corners: bool) -> None:
    first, weight = kernels.axis_tables(low, size, corners, torch.device("cpu"))
    lows, _, weights, _, _ = bilinear.bilinear_axis(low, size, corners, False)
    assert torch.equal(torch.searchsorted(torch.from_numpy(lows), torch.arange(low + 1)).int(), first)
    assert torch.equal(weight, torch.from_numpy(weights))


if __name__ == "__main__":  # prints the table of docs/design/0007-upsample-cross-entropy.md
    print("| options | classes | dtype | registers sm_80 / sm_90 | spilled |")
    print("|---|---|---|---|---|")
    for name in FLAGS:
        for classes, dtype in ((19, "bf16"), (150, "bf16"), (150, "fp32"), (512, "fp16")):
            (a, spilled), (b, more) = build(name, classes, dtype, 80), build(name, classes, dtype, 90)
            print(f"| {name} | {classes} | {dtype} | {a} / {b} | {spilled + more} |")
