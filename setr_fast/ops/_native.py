"""Find and load the compiled extension. It may be missing: every op has a reference in PyTorch.

``setr_fast._native`` adds the CPU kernels to the torch ops of namespace ``setr_fast_native`` when it is imported, and
holds the routines on arrays. ``setr_fast/_cuda.so`` adds the CUDA kernels; it is loaded only with a CUDA build of torch
and a device, since it needs symbols that other builds of torch lack.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

MODULE = "setr_fast._native"
OLDEST_CARD = (8, 0)
"""Capability: asynchronous copies into shared memory, products of bfloat16."""
_REMEDY = "run `pip install -v -e .`, which says why it is not compiled"


@functools.cache
def _loaded() -> tuple[ModuleType | None, str]:
    """Return the module, or None and why it is missing. torch is imported by now, which its symbols need."""
    try:
        if importlib.util.find_spec(MODULE) is None:
            return None, f"the extension {MODULE} is not compiled; {_REMEDY}"
        return importlib.import_module(MODULE), ""
    except ImportError as error:
        return None, f"the extension {MODULE} cannot be loaded ({error}); {_REMEDY}"


@functools.cache
def _loaded_cuda() -> str:
    """Load the CUDA library; return why it is missing, or an empty text."""
    module, why = _loaded()
    if module is None:
        return why
    library = Path(str(module.__file__)).with_name("_cuda.so")
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    if all(capability < OLDEST_CARD for capability in capabilities):
        found, oldest = (".".join(map(str, pair)) for pair in (max(capabilities), OLDEST_CARD))
        return f"the CUDA kernels are for cards of capability {oldest} or newer, this one has {found}"
    if not library.is_file():
        return f"the CUDA library is not compiled; install nvcc of CUDA {torch.version.cuda}, then {_REMEDY}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"the CUDA library cannot be loaded ({error}); {_REMEDY}"
    return ""


def load() -> ModuleType | None:
    """Return the extension, loaded once, or None."""
    return _loaded()[0]


def reason() -> str:
    """Return why the extension is missing, or an empty text."""
    return _loaded()[1]


def missing(device: str) -> str:
    """Return why there are no compiled kernels for tensors on ``device``, or an empty text."""
    return _loaded_cuda() if device == "cuda" else reason()


def build_info() -> dict[str, str]:
    """Return how the extension was compiled, and whether its CUDA library is in use and if not why."""
    module = load()
    if module is None:
        return {"extension": f"missing: {reason()}"}
    cuda = missing("cuda")
    return {"extension": "loaded", **module.build_info(), "cuda_in_use": f"no: {cuda}" if cuda else "yes"}
