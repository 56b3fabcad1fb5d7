"""Which backends this very machine has found right and faster; the ops try those first.

``setr-fast bench --adopt`` writes the file and says by what rule (setr_fast/adopt.py). An entry holds for one machine
and for the programs it was measured with: another card, another torch or triton, kernels compiled or edited since, and
it is as if it were not there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import BackendError, ConfigError
from setr_fast.files import atomic_write
from setr_fast.ops import _native

VARIABLE = "SETR_FAST_ADOPTED"
OFF = "off"
Choices = dict[str, dict[str, str]]
"""Backend by dtype by op."""


_ignored = False
_untried_first = False


@contextmanager
def untried_first() -> Iterator[None]:
    """Have the ops take kernels that no card has run yet before all else, where those serve: to measure them."""
    global _untried_first
    before, _untried_first = _untried_first, True
    try:
        yield
    finally:
        _untried_first = before


def takes_untried() -> bool:
    """Return whether kernels that no card has run yet come first."""
    return _untried_first


@contextmanager
def ignored() -> Iterator[None]:
    """Have the ops choose as if nothing had been adopted."""
    global _ignored
    before, _ignored = _ignored, True
    try:
        yield
    finally:
        _ignored = before


def file() -> Path | None:
    """Return where choices are kept: what SETR_FAST_ADOPTED names, None where it says ``off``, or a file in the user's
    cache folder."""
    named = os.environ.get(VARIABLE)
    if named == OFF:
        return None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "setr_fast" / "adopted.json"


def choice(op_name: str, args: tuple[Any, ...]) -> str | None:
    """Return the backend that was adopted for an op on the device and in the dtype of its first tensors, or None."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    if _ignored or not tensors or not (known := choices(str(tensors[0].device))):
        return None
    return known.get(op_name, {}).get(dtype_of(tensors))


def dtype_of(tensors: list[Tensor]) -> str:
    """Return the dtype that an op computes in: that of its first tensor of floating point, float32 without any."""
    return next((str(t.dtype)[6:] for t in tensors if t.is_floating_point()), "float32")


@functools.cache
def choices(device: str) -> Choices:
    """Return what was adopted on a device, read once per process; nothing where the file is of something else."""
    path = file()
    if path is None:
        return {}
    entry = _read(path).get(place(device), {})
    return entry["choices"] if entry.get("made_with") == made_with() else {}


def keep(device: str, found: Mapping[str, Mapping[str, str]]) -> Path:
    """Replace what was adopted for the ops in ``found`` on a device, keep the rest, and return the file.

    Raises: BackendError where the file cannot be written, ConfigError where SETR_FAST_ADOPTED says ``off``.
    """
    path = file()
    if path is None:
        raise ConfigError(f"bench: --adopt must be able to keep its choices, got {VARIABLE}={OFF}; unset it")
    everything = _read(path)
    merged: dict[str, Any] = {**choices(device), **found}
    everything[place(device)] = {
        "made_with": made_with(),
        "choices": {name: dict(by_dtype) for name, by_dtype in sorted(merged.items()) if by_dtype},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(everything, indent=1) + "\n")
    except OSError as error:
        raise BackendError(
            f"bench: {path}: cannot be written ({error.strerror}); name another by {VARIABLE}"
        ) from error
    choices.cache_clear()
    return path


def place(device: str) -> str:
    """Return the machine as a key: the card's name, or processor and threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    return f"{platform.node()}, {platform.machine()} {capability}, {torch.get_num_threads()} threads"


@functools.cache
def made_with() -> str:
    """Return a digest of all that computes: versions, the compiled libraries, the Triton kernels."""
    facts = [f"torch {torch.__version__} {torch.version.cuda}", f"cudnn {_cudnn()}", *sorted(_versions())]
    package = Path(__file__).resolve().parents[1]
    facts += [f"{path.name} {path.stat().st_mtime_ns}" for path in sorted(package.glob("*.so"))]
    facts += [f"{path.name} {path.read_text()}" for path in sorted((package / "kernels").glob("*.py"))]
    facts.append(str(_native.build_info().get("version")))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _cudnn() -> int | None:
    return torch.backends.cudnn.version() if torch.cuda.is_available() else None


def _versions() -> list[str]:
    found = []
    for name in ("triton", "xformers", "setr_fast"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
        return {key: entry for key, entry in known.items() if _is_entry(entry)}
    except (OSError, ValueError, AttributeError):
        return {}  # none yet, or not ours


def _is_entry(entry: Any) -> bool:
    found = entry.get("choices") if isinstance(entry, dict) else None
    return isinstance(found, dict) and all(
        isinstance(by_dtype, dict) and all(isinstance(name, str) for name in by_dtype.values())
        for by_dtype in found.values()
    )
