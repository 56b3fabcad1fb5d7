"""``python -m benchmarks.counts``: instructions that each CPU kernel executes on a fixed input, counted by callgrind.

A count has no noise, so it can be held to two percent in CI where times cannot. Only instructions inside the compiled
extension count: neither Python's nor those of torch's matrix products. valgrind knows no AVX-512, so what is counted
are the AVX2 variants; another compiler gives other counts, so counts are kept with the compiler's name.

``--write`` renews ``benchmarks/instructions.json``, which ``tests/native/test_instruction_counts.py`` compares with.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from setr_fast.ops import OPS, _native
from setr_fast.ops._op import FULL, Case, Draw, Op

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "instructions.json"
REQUESTS = ROOT / "benchmarks" / "callgrind_requests.c"
WORK = 4e6
"""Bytes plus floating-point operations of the largest case that is counted: a tenth of a second under valgrind."""
TOLERANCE = 1.02
NEWER = frozenset({"attention_bytes"})
"""Ops whose kernel is AVX-512 alone, which valgrind cannot run."""
DTYPES = (torch.float32, torch.bfloat16)


def main() -> int:
    """Count, print beside what is recorded, and record if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help=f"renew {RECORD.name}")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _count_inside(Path(options.inside[0]), options.inside[1:])
        return 0
    if why := missing():
        print(f"benchmarks.counts: {why}", file=sys.stderr)
        return 4
    counts = count(countable())
    recorded = read_record()
    for name, number in counts.items():
        before = recorded["counts"].get(name)
        print(f"{name:60s} {number:>12,d}  " + (f"{number / before - 1:+.1%}" if before else "not recorded"))
    if options.write:
        RECORD.write_text(json.dumps({"compiler": compiler(), "counts": counts}, indent=1) + "\n")
    return 0


def missing() -> str:
    """Return what counting lacks on this machine, in words; empty where it can be done."""
    for tool in ("valgrind", "cc", "readelf"):
        if shutil.which(tool) is None:
            return f"counting instructions needs {tool}, which is not on PATH"
    if not any(Path(folder, "valgrind/callgrind.h").exists() for folder in ("/usr/include", "/usr/local/include")):
        return "counting instructions needs valgrind/callgrind.h; install valgrind's headers"
    return _native.missing("cpu")


def compiler() -> str:
    """Return the name and version of the compiler that made the extension, as it left it there."""
    text = subprocess.run(["readelf", "-p", ".comment", _extension()], capture_output=True, text=True, check=True)
    return " ".join(sorted(set(re.findall(r"GCC: .*|clang version .*", text.stdout))))


def read_record() -> dict:
    """Return what is recorded: the compiler's name and a count per kernel."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {"compiler": "", "counts": {}}


def grown(recorded: dict[str, int], counted: dict[str, int]) -> list[str]:
    """Return a line for each kernel that executes more than it did, or was never recorded."""
    lines = []
    for name, number in counted.items():
        before = recorded.get(name)
        if before is None:
            lines.append(f"{name}: {number:,d} instructions, not recorded")
        elif number > TOLERANCE * before:
            lines.append(f"{name}: {number:,d} instructions, recorded {before:,d} ({number / before - 1:+.1%})")
    return lines


def count(names: Sequence[str]) -> dict[str, int]:
    """Run kernels (``op/case/dtype``) under callgrind with one thread and return the instructions of each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        command += [sys.executable, "-m", "benchmarks.counts", "--inside", folder, *names]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"valgrind: exit code {done.returncode}: {done.stderr[-2000:]}")
        counts = {}
        for path in Path(folder).glob("out.*"):
            text = path.read_text()
            if name := re.search(r"^desc: Trigger: Client Request: (\S+)$", text, re.MULTILINE):
                counts[name[1]] = counts.get(name[1], 0) + self_cost(text, Path(_extension()).name)
    return dict(sorted(counts.items()))


def self_cost(profile: str, library: str) -> int:
    """Return the cost that a callgrind profile charges to the functions of one library, without what they call."""
    names: dict[str, str] = {}
    current, total, called = "", 0, False
    for line in profile.splitlines():
        if match := re.match(r"(c?)ob=\((\d+)\)(?: (.*))?$", line):
            if match[3]:
                names[match[2]] = match[3]
            if not match[1]:
                current = names[match[2]]
        elif line.startswith("calls="):
            called = True  # the next line is the callee's
        elif re.match(r"[+*\-]?\d* ?\*? ?\d", line):
            if not called and current.endswith(library):
                total += int(line.split()[-1])
            called = False
    return total


def countable() -> list[str]:
    """Return, per op with a CPU kernel and dtype that it takes, the largest case within ``WORK``."""
    names = []
    for op in (op for op in OPS.values() if op.name not in NEWER):
        for dtype in DTYPES if op.rounds else DTYPES[:1]:
            best = max(_within(op, dtype), key=lambda pair: pair[0], default=None)
            if best is not None:
                names.append(f"{op.name}/{_spelled(best[1])}/{str(dtype)[6:]}")
    return names


def _within(op: Op, dtype: torch.dtype) -> Iterator[tuple[float, Case]]:
    """Yield the cases that the CPU kernel takes, with their work, the first of equal ones ahead."""
    for place, case in enumerate(c for c in op.cases() if c.bench != FULL):
        args = case.make(Draw.on("cpu", dtype))
        cost = op.cost(*args)
        if cost.bytes + cost.flops <= WORK and _serving(op, args):
            yield cost.bytes + cost.flops - place * 1e-6, case


def _serving(op: Op, args: tuple) -> bool:
    return any(b.name == "native" and b.device != "cuda" and not op.refusals(b, *args) for b in op.backends)


def _arguments(name: str) -> tuple[Op, tuple]:
    op_name, case_name, dtype = name.split("/")
    op = OPS[op_name]
    case = next(case for case in op.cases() if _spelled(case) == case_name)
    return op, case.make(Draw.on("cpu", getattr(torch, dtype)))


def _spelled(case: Case) -> str:
    return case.name.replace(" ", "_").replace("/", "_")


def _count_inside(folder: Path, names: Sequence[str]) -> None:
    """Run under valgrind: each kernel once to warm up, then once counted."""
    library = folder / "requests.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", str(REQUESTS), "-o", str(library)], check=True)
    requests = ctypes.CDLL(str(library))
    torch.set_num_threads(1)
    chosen = {name: _arguments(name) for name in names}
    for op, args in chosen.values():
        op.run("native", *args)
    requests.start_counting()
    for name, (op, args) in chosen.items():
        op.run("native", *args)
        requests.dump_counts(name.encode())


def _extension() -> str:
    import setr_fast._native as extension

    return str(extension.__file__)


if __name__ == "__main__":
    sys.exit(main())
