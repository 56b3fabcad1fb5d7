"""What ``doctor`` says: versions, what was compiled, which backend each op would use here and why not the others."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata

import torch

from setr_fast.ops import OPS, _adopted, _native
from setr_fast.ops._op import REFERENCE, Draw

PACKAGES = ("torch", "triton", "xformers", "numpy", "pillow", "safetensors", "pybind11", "ninja")


def doctor() -> str:
    """Return the report as text."""
    lines = [
        f"python {platform.python_version()} on {platform.machine()}, "
        f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    ]
    lines += [f"  {name:12s} {_version(name)}" for name in PACKAGES]
    if torch.cuda.is_available():
        lines += [f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    else:
        lines.append("GPU: none that torch can use")
    lines += _adoption()
    lines += ["", "compiled extension:"]
    info = _native.build_info()
    lines += [f"  {key:18s} {value}" for key, value in info.items()] or [f"  none: {_native.reason()}"]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        lines += ["", f"backends on {device} (* is used{', in bfloat16' if device == 'cuda' else ''}):"]
        lines += [line for name in sorted(OPS) for line in _backends(name, device)]
    return "\n".join(lines)


def _adoption() -> list[str]:
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    path = _adopted.file()
    if path is None:
        return [f"adopted: {_adopted.VARIABLE} is off"]
    found = [
        f"  on {device}: {name} = {backend} ({dtype})"
        for device in devices
        for name, by_dtype in _adopted.choices(device).items()
        for dtype, backend in by_dtype.items()
    ]
    return [f"adopted by `setr-fast bench --adopt` ({path}):{'' if found else ' nothing that holds here'}", *found]


def _backends(name: str, device: str) -> list[str]:
    op = OPS[name]
    cases = list(op.cases())
    case, dtype = cases[0], torch.float32
    if device == "cuda":  # what a card computes in, and of a size that its kernels are chosen for
        case = next((c for c in cases if c.bench), case)
        dtype = torch.bfloat16 if op.rounds else dtype
    args = case.make(Draw.on(device, dtype))
    chosen = op.choose(*args)
    lines = [f"  {name}"]
    marked = False
    for backend in op.backends:
        reasons = op.refusals(backend, *args)
        star = "*" if backend.name == chosen and not reasons and not marked else " "
        marked |= star == "*"
        verdict = ("; ".join(reasons) or "serves") + (f" ({backend.note})" if backend.note else "")
        lines.append(f"   {star} {backend.name:14s} {backend.device or 'any':5s} {verdict}")
    lines.append(f"   {'*' if chosen == REFERENCE else ' '} {REFERENCE:14s} any   serves")
    return lines


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "present" if importlib.util.find_spec(name) else "absent"
