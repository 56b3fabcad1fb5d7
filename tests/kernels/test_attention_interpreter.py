"""The attention kernels by triton's interpreter against float64, among NaN, in float32 and float16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="needs triton, which only Linux has")
if triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    reason = "the interpreter of triton 3.6 cannot count a loop of runtime length with numpy 2.4 or newer"
    pytest.skip(reason, allow_module_level=True)
SCRIPT = Path(__file__).with_name("attention_interpreted.py")
ROOT = SCRIPT.parents[2]
CASES = [
    {"kind": "random", "dtype": dtype, "shape": shape, "card": card}
    for dtype in ("float32", "float16")
    for card, shape in (
        ("sm_80", (2, 1, 2, 64)),
        ("sm_90", (1, 1, 1, 16)),
        ("sm_80", (2, 7, 2, 16)),
        ("sm_90", (1, 7, 1, 128)),
        ("sm_80", (1, 64, 1, 48)),
        ("sm_90", (1, 64, 2, 64)),
        ("sm_80", (1, 65, 2, 64)),
        ("sm_90", (2, 65, 1, 16)),
        ("sm_80", (1, 128, 1, 128)),
        ("sm_90", (1, 128, 2, 64)),
        ("sm_80", (1, 193, 1, 48)),
        ("sm_90", (1, 193, 2, 64)),
        ("sm_90", (1, 193, 1, 128)),
        ("sm_80", (1, 65, 1, 80)),
    )
]
CASES += [
    {"kind": kind, "dtype": dtype, "shape": (1, N, 2, 64), "card": "sm_90"}
    for kind in ("zero_queries", "equal_rows", "scores_1e4_apart", "all_scores_low")
    for dtype in ("float32", "float16")
    for N in (65, 128)
]
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10}


def _name(case: dict[str, Any]) -> str:
    return "-".join((case["kind"], case["dtype"], "x".join(map(str, case["shape"])), case["card"]))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("interpreted")
    (folder / "cases.json").write_text(json.dumps(CASES))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "cases.json"), str(folder / "results.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    values = json.loads((folder / "results.json").read_text())
    return dict(zip(map(_name, CASES), values, strict=True))


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_kernels_agree_with_float64(results: dict[str, dict[str, Any]], case: dict[str, Any]) -> None:
    result = results[_name(case)]
    assert ("dqkv_in_one_pass" in result) == (case["shape"][1] <= 130)
    whole = case["shape"][1] % 64 == 0 and case["shape"][3] in (64, 128)
    assert ("out_by_descriptors" in result) == (case["dtype"] == "float16" and whole)
    for what in ("out", "lse", "out_by_descriptors", "lse_by_descriptors", "dqkv", "dqkv_in_one_pass"):
        if what not in result:
            continue
        found = result[what]
        # Twice the error of plain PyTorch with the same storage, and what rounding P to 16 bits adds.
        allowed = 2 * found["plain"] + 2 * EPSILON[case["dtype"]] * max(found["size"], 1.0)
        if "dqkv" in what and case["kind"] != "random":
            # P comes from a log-sum-exp rounded to float32, and where rows are equal the terms of dQ and dK cancel.
            allowed += EPSILON["float32"] * (result["lse"]["size"] * found["size"] / 2 + result["terms"])
        assert found["error"] <= allowed, (what, found)
    assert result["guards"], "a value was written outside of a tensor"
    assert result["same_bits"], "two runs of the backward must give the same bits"
