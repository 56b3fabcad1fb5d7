"""Amounts of memory as people write them. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

import re

from setr_fast.errors import ConfigError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?)B?\s*", re.IGNORECASE)


def parse_bytes(text: str, where: str = "memory_budget") -> int:
    """Return the bytes that a text like ``4GiB``, ``800 MB`` or ``2G`` means; binary units have an i.

    Raises: ConfigError for anything else, and for less than one byte.
    """
    match = _PATTERN.fullmatch(text)
    unit = match[2].upper().replace("I", "i") if match else None
    if match is None or unit not in _UNITS or float(match[1]) * _UNITS[unit] < 1:
        raise ConfigError(f"{where}: must be an amount of memory like 4GiB or 800MB, got {text!r}")
    return int(float(match[1]) * _UNITS[unit])
