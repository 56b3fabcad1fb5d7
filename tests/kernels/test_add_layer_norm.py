"""The Triton kernel of add_layer_norm without a GPU: interpreted against float64, and compiled for cards."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="needs triton, which only Linux has")
SCRIPT = Path(__file__).with_name("add_layer_norm_interpreted.py")
BOUNDS = {"float32": 2e-6, "float16": 2e-3}
CASES = [
    {"shape": shape, "dtype": dtype, "strided": strided}
    for dtype in ("float32", "float16")
    for shape, strided in (((2, 3, 100), True), ((1, 1, 7), False), ((1, 300, 8), False), ((1, 3, 1024), False))
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of triton 3.6 cannot count a loop of runtime length with numpy 2.4 or newer")
    folder = tmp_path_factory.mktemp("interpreted")
    (folder / "cases.json").write_text(json.dumps(CASES))
    command = [sys.executable, str(SCRIPT), str(folder / "cases.json"), str(folder / "results.json")]
    path = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{CASES[i]['dtype']}-{CASES[i]['shape']}")
def test_interpreted_kernels_agree_with_float64(index: int, results: list[dict[str, Any]]) -> None:
    found, bound = dict(results[index]), BOUNDS[CASES[index]["dtype"]]
    assert found.pop("total") < 2e-6
    assert all(value < bound for value in found.values()), found


@pytest.mark.parametrize("card", [80, 90])
@pytest.mark.parametrize("width", [192, 1024])
def test_the_compiled_kernel_keeps_a_row_in_registers(width: int, card: int) -> None:
    compiler, targets = (importlib.import_module(f"triton.{m}") for m in ("compiler", "backends.compiler"))
    knobs = importlib.import_module("triton.knobs")
    kernels = importlib.import_module("setr_fast.kernels.add_layer_norm")
    function = kernels._add_layer_norm
    constants = kernels.launch_of(width)
    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    kinds = {"branch": "*bf16", "normed": "*bf16", "eps": "fp32"}
    signature = {n: "constexpr" if n in constants else kinds.get(n, "*fp32") for n in function.arg_names}
    pointers = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(function.arg_names) if signature[n][0] == "*"}
    source = compiler.ASTSource(fn=function, signature=signature, constexprs=constants, attrs=pointers)
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True  # what comes from the cache was not assembled, and says nothing
        knobs.nvidia.dump_ptxas_log = True
        triton.compile(source, target=targets.GPUTarget("cuda", card, 32), options=options)
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.getvalue())
    assert registers, log.getvalue()
    assert spills, log.getvalue()
    assert int(registers[1]) <= 80, log.getvalue()
    assert spills[1] == spills[2] == "0", log.getvalue()
