"""The sweep of attention's launches: what it would time compiles for Hopper, what is wrong is not timed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import launches
from tests.kernels import ahead

triton = pytest.importorskip("triton", reason="needs triton, which only Linux has")
ENTRIES = [(kernel, launch) for kernel, many in launches.CANDIDATES.items() for launch in many]


@pytest.mark.parametrize(
    ("launch", "by_warps"),
    [(launch, False) for launch in launches.DESCRIPTORS] + [(launch, True) for launch in launches.SPECIALISED],
)
def test_a_candidate_with_descriptors_loads_by_the_copy_engine(launch: Any, by_warps: bool) -> None:
    function = importlib.import_module("setr_fast.kernels.attention_descriptors")._attention_forward_descriptors
    rows, columns, num_warps, num_stages = launch
    kinds = {name: f"tensordesc<bf16[{block},64]>" for name, block in (("queries", rows), ("keys", columns))}
    kinds |= {"out": "*bf16", "lse": "*fp32", "scale": "fp32"}
    constants = {"H": 16, "E": 64, "BLOCK_M": rows, "BLOCK_N": columns, "WARP_SPECIALIZE": by_warps}
    try:
        built = ahead.build(function, kinds, constants, 90, num_warps=num_warps, num_stages=num_stages)
    except RuntimeError as error:
        if not by_warps or triton.__version__.startswith("3.6."):
            raise
        pytest.skip(f"triton {triton.__version__} cannot specialise these warps ({error}); 3.6.0, which is meant, can")
    assert built.spilled_bytes == 0
    assert built.shared_bytes <= 227 * 1024
    assert "serializ" not in built.log.lower(), built.log
    assert "cp.async.bulk.tensor" in built.ptx
    assert "wgmma.mma_async" in built.ptx
    assert ("setmaxnreg" in built.ptx) == by_warps, "warps of their own take and give back registers"


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "launch"), ENTRIES, ids=str)
def test_a_candidate_neither_spills_nor_runs_its_products_one_after_the_other(kernel: str, launch: Any) -> None:
    compiled = importlib.import_module("tests.kernels.test_attention_compiles")
    built = compiled.build(kernel, compiled.kernels.Launch(*launch), "sm_90", "bf16", 64, 16, False)
    assert built.spilled_bytes == 0
    assert built.shared_bytes <= compiled.SHARED_BYTES["sm_90"]
    assert "serializ" not in built.log.lower(), built.log


def test_what_fails_or_is_wrong_is_named_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Any:
        raise RuntimeError("out of resources\nmore")

    sides: dict[str, Callable[[], Any]] = {
        "forward of the table": lambda: (torch.ones(4), torch.zeros(1)),
        "forward right": lambda: (torch.ones(4) + 2**-8, torch.zeros(1)),
        "forward off": lambda: (torch.ones(4) * 1.1, torch.zeros(1)),
        "dq of NaN": lambda: torch.full((4,), torch.nan),
        "dq broken": broken,
    }
    assert list(launches.checked(sides)) == ["forward of the table", "forward right"]
    said = capsys.readouterr().out
    assert "forward off: WRONG, off by 0.1 of 1\n" in said
    assert "dq of NaN: WRONG" in said
    assert "dq broken: FAILED: out of resources\n" in said


def test_a_launch_is_put_into_the_table_and_taken_out_again() -> None:
    kernels = importlib.import_module("setr_fast.kernels.attention")
    entry = ("dq", launches.WIDTH, "half", "sm_90")
    before = dict(kernels.LAUNCHES)
    with launches.launched(entry, (64, 64, 4, 3)):
        assert kernels.LAUNCHES[entry] == kernels.Launch(64, 64, 4, 3)
        assert before != kernels.LAUNCHES
    assert before == kernels.LAUNCHES
