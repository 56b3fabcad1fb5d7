"""Ahead-of-time compilation of every launch of the attention kernels, for cards that are not here.

What a GPU would be given: no spilled registers, no more registers than the table of docs/design/0004-attention.md says,
16-bit products on Hopper by ``wgmma`` and not one after the other.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip("triton", reason="needs triton, which only Linux has")
compiler = importlib.import_module("triton.compiler")
targets = importlib.import_module("triton.backends.compiler")
knobs = importlib.import_module("triton.knobs")
kernels = importlib.import_module("setr_fast.kernels.attention")
atomic = importlib.import_module("setr_fast.kernels.attention_atomic")

KERNELS = {
    "forward": kernels._attention_forward,
    "dkdv": kernels._attention_backward_dkdv,
    "dq": kernels._attention_backward_dq,
    "atomic": atomic._attention_backward_atomic,
    "delta": kernels._attention_backward_delta,
    "round": atomic._attention_backward_round,
}
SMALL = ("delta", "round")
SHARED_BYTES = {"sm_80": 99 * 1024, "sm_90": 227 * 1024}  # per block, of the smallest card that uses the entry
REGISTERS = 65536  # per multiprocessor
# Blocks that the registers of one multiprocessor hold at the same time: what an entry was chosen for. Only another
# warpgroup's softmax overlaps the matrix products of one, so a launch that falls below this has lost its point.
BLOCKS = {
    ("forward", 64, "half", "sm_80"): 2,
    ("forward", 128, "half", "sm_80"): 2,
    ("dkdv", 64, "half", "sm_80"): 2,
    ("dkdv", 128, "half", "sm_80"): 1,
    ("dq", 64, "half", "sm_80"): 2,
    ("dq", 128, "half", "sm_80"): 2,
    ("forward", 64, "half", "sm_90"): 2,
    ("forward", 128, "half", "sm_90"): 1,
    ("dkdv", 64, "half", "sm_90"): 2,
    ("dkdv", 128, "half", "sm_90"): 1,
    ("dq", 64, "half", "sm_90"): 2,
    ("dq", 128, "half", "sm_90"): 2,
    # Five products in one: eight warps, a warpgroup's softmax overlaps the other's products.
    ("atomic", 64, "half", "sm_80"): 1,
    ("atomic", 128, "half", "sm_80"): 1,
    ("atomic", 64, "half", "sm_90"): 1,
    ("atomic", 128, "half", "sm_90"): 1,
} | {
    (kernel, width, "single", card): 2
    for kernel in ("forward", "dkdv", "dq", "atomic")
    for width in (64, 128)
    for card in ("sm_80", "sm_90")
}


def _by_name_only(entry: tuple[str, int, str, str], masked: bool) -> bool:
    return entry[0] == "atomic" and (entry[1:3] != (64, "half") or not masked)


ENTRIES = [
    pytest.param(
        entry,
        masked,
        id="-".join((*map(str, entry), "masked" if masked else "whole")),
        # Always those with a tail, which need the most registers, and every one of 16 bits; of the kernel that is taken
        # by name only two. The others in the slow lane.
        marks=[pytest.mark.slow] if (not masked and entry[2] == "single") or _by_name_only(entry, masked) else [],
    )
    for entry in kernels.LAUNCHES
    for masked in (False, True)
]


class Built(NamedTuple):
    """What the compiler says of one kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    ptx: str
    log: str


@functools.cache
def build(
    kernel: str, launch: Any, card: str, pointer: str, width: int, heads: int, masked: bool, one: bool = False
) -> Built:
    """Compile one kernel, once per session; ``one`` is the specialisation for N of one."""
    function = KERNELS[kernel]
    constants: dict[str, Any] = {"H": heads, "E": width, "WIDTH": triton.next_power_of_2(width)}
    if kernel in SMALL:
        constants["ROWS"] = kernels.DELTA_ROWS
    else:
        constants |= {"BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n, "MASK_N": masked}
    constants |= {"N": 1} if one else {}
    kinds = {
        "lse": "*fp32",
        "delta": "*fp32",
        "dq": "*fp32",
        "N": "i32",
        "rows_in_all": "i32",
        "scale": "fp32",
        "plain_scale": "fp32",
    }
    signature = {n: "constexpr" if n in constants else kinds.get(n, f"*{pointer}") for n in function.arg_names}
    # Every tensor starts on 16 bytes, and so do its rows; N is a multiple of 16 where nothing is masked.
    aligned = {n for n, kind in signature.items() if kind[0] == "*" or (n == "N" and not masked)}
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(function.arg_names) if n in aligned}
    source = compiler.ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    options = kernels.options(launch) if launch else {"num_warps": 4}
    target = targets.GPUTarget("cuda", int(card[3:]), 32)
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True  # what comes from the cache was not assembled, and says nothing
        knobs.nvidia.dump_ptxas_log = True
        made = triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.getvalue())
    assert registers, log.getvalue()
    assert spills, log.getvalue()
    spilled = int(spills[1]) + int(spills[2])
    return Built(int(registers[1]), spilled, made.metadata.shared, made.asm["ptx"], log.getvalue())


def entry_build(entry: tuple[str, int, str, str], masked: bool) -> Built:
    kernel, width, kind, card = entry
    pointer = "fp32" if kind == "single" else "bf16"
    return build(kernel, kernels.LAUNCHES[entry], card, pointer, width, 16, masked)


@pytest.mark.parametrize(("entry", "masked"), ENTRIES)
def test_every_launch_compiles_within_its_limits(entry: tuple[str, int, str, str], masked: bool) -> None:
    built, launch = entry_build(entry, masked), kernels.LAUNCHES[entry]
    assert built.spilled_bytes == 0, "a launch that spills does not belong in the table"
    rounded = -(-built.registers // 8) * 8  # given out eight at a time
    assert rounded * 32 * launch.num_warps * BLOCKS[entry] <= REGISTERS, f"{built.registers} registers"
    assert built.shared_bytes <= SHARED_BYTES[entry[3]]
    if entry[2] == "half":
        assert ("wgmma.mma_async" in built.ptx) == (entry[3] == "sm_90")
        assert "mma.sync" in built.ptx or entry[3] == "sm_90"
        assert "cp.async" in built.ptx, "loads that are not asynchronous were split into single values"
        if entry[0] == "atomic":
            assert "red.global" in built.ptx or "atom.global" in built.ptx
    assert "serializ" not in built.log.lower(), built.log


@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("card", ["sm_80", "sm_90"])
@pytest.mark.parametrize("pointer", ["fp16", "bf16", "fp32"])
def test_the_small_kernels_of_the_backward_compile(card: str, pointer: str, small: str) -> None:
    assert build(small, None, card, pointer, 64, 16, True).spilled_bytes == 0


@pytest.mark.parametrize("kernel", ["forward", "dkdv", "dq"])
@pytest.mark.parametrize(
    ("pointer", "width", "heads", "one"),
    [("fp16", 64, 16, False), ("bf16", 80, 3, False), ("bf16", 16, 1, False), ("bf16", 64, 3, True)],
    ids=["fp16", "width-80", "width-16-one-head", "one-token"],
)
def test_other_dtypes_and_widths_do_not_spill(kernel: str, pointer: str, width: int, heads: int, one: bool) -> None:
    launch = kernels.LAUNCHES[kernel, 64 if width <= 64 else 128, "half", "sm_90"]
    built = build(kernel, launch, "sm_90", pointer, width, heads, True, one)
    assert built.spilled_bytes == 0
    assert "serializ" not in built.log.lower(), built.log


def test_a_launch_that_spills_is_seen() -> None:
    """The design guide's example, 64 x 128 with four warps for dK and dV."""
    built = build("dkdv", kernels.Launch(64, 128, 4, 2), "sm_90", "bf16", 64, 16, False)
    assert built.spilled_bytes > 0


def test_a_serialised_launch_is_seen() -> None:
    """The design guide's example, 128 x 128 with four warps: the assembler still says so in its log."""
    built = build("forward", kernels.Launch(128, 128, 4, 3), "sm_90", "bf16", 64, 16, False)
    assert "serializ" in built.log.lower() or built.spilled_bytes > 0, built.log


def test_the_table_is_whole() -> None:
    assert set(BLOCKS) == set(kernels.LAUNCHES)
    assert len(kernels.LAUNCHES) == 4 * 2 * 2 * 2


if __name__ == "__main__":  # prints the table of docs/design/0004-attention.md
    print("| kernel | head width | dtype | card | block, warps, stages | registers | spilled | shared KiB |")
    print("|---|---|---|---|---|---|---|---|")
    for entry, launch in kernels.LAUNCHES.items():
        whole, tail = entry_build(entry, False), entry_build(entry, True)
        shape = f"{launch.block_m}x{launch.block_n}, {launch.num_warps}, {launch.num_stages}"
        cells = [*map(str, entry), shape, f"{whole.registers} / {tail.registers}"]
        cells += [f"{whole.spilled_bytes} / {tail.spilled_bytes}"]
        print(f"| {' | '.join([*cells, str(max(whole.shared_bytes, tail.shared_bytes) // 1024)])} |")
