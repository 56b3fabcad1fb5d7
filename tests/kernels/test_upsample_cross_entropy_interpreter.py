"""Upsampled cross entropy and class sums by triton's interpreter against float64, in float32 and float16."""

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
SCRIPT = Path(__file__).with_name("upsample_cross_entropy_interpreted.py")
ROOT = SCRIPT.parents[2]
BOUNDS = {"float32": 2e-6, "float16": 2e-3}  # of the largest value; a map's gradient is rounded to float16
CASES = [
    {
        "logits": logits,
        "size": size,
        "labels": labels,
        "corners": corners,
        "dtype": dtype,
        "weighted": weighted,
        "smoothing": smoothing,
        "spread": spread,
        "ignored": -1,
    }
    for dtype in ("float32", "float16")
    for logits, size, labels, corners, weighted, smoothing, spread in (
        ((1, 5, 3, 4), (6, 8), (6, 8), False, False, 0.0, 2.0),
        ((2, 19, 2, 6), (9, 21), (8, 20), True, True, 0.1, 2.0),
        ((1, 3, 7, 5), (4, 3), (4, 3), False, False, 0.0, 2.0),
        ((1, 2, 1, 1), (5, 3), (5, 3), False, True, 0.0, 2.0),
        ((1, 40, 1, 9), (3, 30), (3, 29), False, False, 0.2, 2.0),
        ((1, 151, 2, 3), (4, 6), (4, 6), True, False, 0.0, 2.0),
        ((1, 300, 2, 2), (3, 3), (3, 3), False, False, 0.0, 2.0),
        ((2, 7, 5, 5), (5, 5), (5, 5), False, False, 0.0, 1e4),
    )
]


def _name(case: dict[str, Any]) -> str:
    shape = "x".join(map(str, case["logits"]))
    return f"{case['dtype']}-{shape}-{case['size'][0]}x{case['size'][1]}-{case['spread']:g}"


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
def test_kernel_agrees_with_float64(results: dict[str, dict[str, Any]], case: dict[str, Any]) -> None:
    result = results[_name(case)]
    for what in ("loss", "map", "gradient"):
        assert result[what] <= BOUNDS["float32"], (what, result)
    assert result["map_gradient"] <= BOUNDS[case["dtype"]], result
    assert result["same_bits"], "two runs must give the same bits"
    assert ("sums" in result) == (case["dtype"] == "float32" or case["corners"])
    if "sums" in result:
        assert result["sums"] <= BOUNDS["float32"], result
        assert result["sums_gradient"] <= BOUNDS[case["dtype"]], result
        assert result["sums_same_bits"], "two runs must give the same bits"
        assert result["sums_pixels"] == result["pixels"][0]
    assert result["pixels"][0] == result["pixels"][1] == result["pixels"][2]
