"""Ahead-of-time compilation of the upsampled cross entropy for cards that are not here: nothing may spill."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs triton, which only Linux has")
compiler = importlib.import_module("triton.compiler")
targets = importlib.import_module("triton.backends.compiler")
knobs = importlib.import_module("triton.knobs")
kernels = importlib.import_module("setr_fast.kernels.upsample_cross_entropy")
bilinear = importlib.import_module("setr_fast.ops._native").load()

POINTERS = {
    "labels": "*u8", "class_weights": "*fp32", "first_y": "*i32", "first_x": "*i32", "weight_y": "*fp32",
    "weight_x": "*fp32", "pixel_gradients": "*fp32", "scales": "*fp32", "losses": "*fp32", "sums": "*fp64",
    "hits": "*i32", "gradient": "*fp32", "smoothing": "fp32",
}  # fmt: skip
FLAGS = {
    "training": {"GRADIENT": True},
    "all_options": {"GRADIENT": True, "CLASS_WEIGHTS": True, "SMOOTHING": True},
    "map": {"LOSSES": True},
    "map_backward": {"GRADIENT": True, "PIXEL_GRADIENTS": True},
}
OFF = dict.fromkeys(("CLASS_WEIGHTS", "SMOOTHING", "PIXEL_GRADIENTS", "LOSSES", "GRADIENT"), False)


@functools.cache
def build(flags: str, classes: int, dtype: str, card: int, block: int | None = None) -> tuple[int, int]:
    """Return registers and spilled bytes; ``block`` forces that many classes on one warp."""
    launch = kernels.launch_of(classes)
    constants = OFF | FLAGS[flags] | {"STRETCH": 16, "BLOCK_K": block or launch["BLOCK_K"]}
    function = kernels._cells
    kinds = {"logits": f"*{dtype}", **POINTERS}
    signature = {n: "constexpr" if n in constants else kinds.get(n, "i32") for n in function.arg_names}
    pointers = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(function.arg_names) if signature[n][0] == "*"}
    source = compiler.ASTSource(fn=function, signature=signature, constexprs=constants, attrs=pointers)
    options = {"num_warps": 1 if block else launch["num_warps"], "enable_fp_fusion": True}
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True  # what comes from the cache was not assembled, and says nothing
        knobs.nvidia.dump_ptxas_log = True
        triton.compile(source, target=targets.GPUTarget("cuda", card, 32), options=options)
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.getvalue())
    assert registers, log.getvalue()
    assert spills, log.getvalue()
    return int(registers[1]), int(spills[1]) + int(spills[2])


@pytest.mark.parametrize("card", [80, 90])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize(("classes", "dtype"), [(19, "bf16"), (150, "bf16"), (150, "fp32"), (512, "fp16")])
def test_no_register_is_spilled(flags: str, classes: int, dtype: str, card: int) -> None:
    registers, spilled = build(flags, classes, dtype, card)
    assert spilled == 0, f"{spilled} bytes"
    assert registers <= 255 if classes > 256 else registers <= 240, "eight programs of a warp must fit a processor"


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
