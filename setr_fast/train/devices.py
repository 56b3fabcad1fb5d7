"""GPUs by their data sheets, and this CPU by what it reaches: what plans and utilisation are stated against."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from setr_fast.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A GPU, or this CPU, by its data sheet."""

    name: str
    memory: float
    """Bytes."""
    half_flops: float
    """Dense 16-bit operations per second."""
    single_flops: float
    """32-bit operations per second; on GPUs with tensor cores those of TF32 are not used."""
    bandwidth: float
    """Bytes per second to memory."""
    link: float
    """Bytes per second and GPU to the others of its host, one direction."""
    network: float = 50e9
    """Bytes per second and GPU to other hosts: one 400 Gb/s port each."""


# Source: NVIDIA's data sheets, dense figures without sparsity; SXM versions where there are several.
DEVICES = (
    Device("RTX4090", 24 * GIB, 165e12, 83e12, 1.01e12, 25e9, 3e9),
    Device("A100-40", 40 * GIB, 312e12, 19.5e12, 1.56e12, 300e9, 25e9),
    Device("L40S", 48 * GIB, 362e12, 92e12, 0.86e12, 25e9, 25e9),
    Device("A100", 80 * GIB, 312e12, 19.5e12, 2.04e12, 300e9, 25e9),
    Device("H100", 80 * GIB, 989e12, 67e12, 3.35e12, 450e9),
    Device("H200", 141 * 1e9, 989e12, 67e12, 4.8e12, 450e9),
    Device("B200", 192 * 1e9, 2250e12, 75e12, 8.0e12, 900e9),
)
REACHED = 0.6  # part of the peak that large products reach in training; of the bandwidth, 0.8


def parse_gpus(text: str) -> tuple[int, Device]:
    """Return number and kind of GPUs: ``8x80GiB`` (the newest kind of that size that we know), ``4xA100``, ``cpu``."""
    if text == "cpu":
        return 1, this_cpu()
    match = re.fullmatch(r"(?:(\d+)x)?(?:(\d+(?:\.\d+)?) ?G(?:i?B)?|([A-Za-z][\w-]*))", text)
    if match is None or match[1] == "0":
        raise ConfigError(f"gpus: must be such as 8x80GiB, 4xA100 or cpu, got {text}")
    count = int(match[1] or 1)
    if match[3]:
        found = [d for d in DEVICES if d.name.lower() == match[3].lower()]
        if not found:
            raise ConfigError(f"gpus: must be one of {', '.join(d.name for d in DEVICES)}, got {match[3]}")
        return count, found[0]
    size = float(match[2])
    near = [d for d in DEVICES if abs(d.memory / GIB - size) <= 0.1 * size]
    model = near[-1] if near else DEVICES[0]
    return count, replace(model, memory=size * GIB)


def this_cpu() -> Device:
    """Return this machine by what it reaches just now, in half a second; it has no peak to take a part of."""
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) * 1024
    a, vector = torch.randn(768, 768), torch.randn(2**24)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        b = a.to(dtype)
        rates[dtype] = 2 * 768**3 / _best(partial(torch.mm, b, b))
    bandwidth = 2 * vector.nbytes / _best(lambda: vector.clone())
    return Device("cpu", memory, rates[torch.bfloat16] / REACHED, rates[torch.float32] / REACHED, bandwidth / 0.8, 1e10)


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(8):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def peak_flops(device: torch.device, *, half: bool, stated_tflops: float) -> float:
    """Return the peak of one device in operations per second: stated, or by its data sheet; 0 where unknown."""
    if stated_tflops:
        return stated_tflops * 1e12
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device).upper()
    known = [d for d in DEVICES if d.name.split("-")[0].replace("RTX", "") in name]
    return (known[0].half_flops if half else known[0].single_flops) if known else 0.0
