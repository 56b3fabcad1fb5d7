"""A Triton kernel compiled ahead for a card that is not here, and what the assembler says of it."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from typing import Any, NamedTuple


class Built(NamedTuple):
    """What the compiler says of one kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    ptx: str
    log: str


def build(
    function: Any, kinds: dict[str, str], constants: dict[str, Any], card: int, *, aligned: Any = None, **options: Any
) -> Built:
    """Compile one kernel; ``kinds`` are its arguments' types, int32 where nothing is said.

    Pointers, and the integers named in ``aligned``, are divisible by 16.
    """
    compiler, targets = (importlib.import_module(f"triton.{name}") for name in ("compiler", "backends.compiler"))
    knobs = importlib.import_module("triton.knobs")
    signature = {n: "constexpr" if n in constants else kinds.get(n, "i32") for n in function.arg_names}
    even = {n for n, kind in signature.items() if kind[0] == "*" or n in (aligned or ())}
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(function.arg_names) if n in even}
    source = compiler.ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True  # what comes from the cache was not assembled, and says nothing
        knobs.nvidia.dump_ptxas_log = True
        target = targets.GPUTarget("cuda", card, 32)
        made = importlib.import_module("triton").compile(
            source, target=target, options={"enable_fp_fusion": True, **options}
        )
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.getvalue())
    assert registers, log.getvalue()
    assert spills, log.getvalue()
    spilled = int(spills[1]) + int(spills[2])
    return Built(int(registers[1]), spilled, made.metadata.shared, made.asm["ptx"], log.getvalue())
