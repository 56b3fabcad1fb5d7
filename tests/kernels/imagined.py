"""Launches of Triton kernels that compile and run nothing: ahead of tests on a card, or for a card that is not here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def compiling_only(threads: int = 8, *, forgiving: bool = False) -> Iterator[set[tuple[str, str]]]:
    """Let each launch compile its kernel beside others and not run it; at the end all are there.

    Gives name and specialisation of what was not compiled before. One after the other they take a second each.
    ``forgiving``: what does not compile is left to the launch that needs it, and its test, to say so.
    """
    triton, knobs = importlib.import_module("triton"), importlib.import_module("triton.knobs")
    kind = importlib.import_module("triton.runtime.jit").JITFunction
    compiled: set[tuple[str, str]] = set()

    def launch(self: Any, grid: Any) -> Any:
        return lambda *args, **options: self.run(*args, grid=grid, warmup=True, **options)

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        compiled.add((fn.name.split(".")[-1], key))
        return False

    inherited = "__getitem__" not in vars(kind)
    assert inherited, "this Triton launches in another way"
    kind.__getitem__ = launch
    try:
        with (
            ThreadPoolExecutor(threads) as pool,
            knobs.runtime.scope(),
            triton.AsyncCompileMode(pool, ignore_errors=forgiving),
        ):
            knobs.runtime.jit_cache_hook = note
            yield compiled
    finally:
        del kind.__getitem__


class ImaginedCard:
    """What Triton asks a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        """Return a CUDA card of this capability."""
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> str:
        """Return what kernels are remembered under: no card that is here has this name."""
        return f"imagined sm_{self.capability}"

    def get_current_stream(self, device: str) -> int:
        """Return the default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return where the tensors are."""
        return torch.device("cpu")


@contextmanager
def imagined_card(capability: int) -> Iterator[None]:
    """Let Triton compile for a card that is not here."""
    driver = importlib.import_module("triton.runtime.driver").driver
    before = driver._active
    driver.set_active(ImaginedCard(capability))
    try:
        yield
    finally:
        driver._active = before
