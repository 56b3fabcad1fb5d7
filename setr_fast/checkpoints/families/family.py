"""What a family of checkpoints is: how to tell one, what its shapes say, its rules, and what it drops."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from setr_fast.checkpoints.rules import Dropped, Rule
from setr_fast.errors import CheckpointError
from setr_fast.fields import nearest
from setr_fast.models.spec import ModelSpec

Fields = dict[str, Any]


class Shapes(dict[str, tuple[int, ...]]):
    """Shape of every tensor of a file by its key; asking for a key that is missing names the file."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
        super().__init__(shapes)
        self.where = where

    def need(self, key: str, ndim: int) -> tuple[int, ...]:
        """Return the shape of a key that the family always holds.

        Raises: CheckpointError where it is missing or has another number of axes.
        """
        if key not in self:
            raise CheckpointError(f"{self.where}: weights must hold {key}, got none{nearest(key, self)}")
        if len(self[key]) != ndim or 0 in self[key]:
            raise CheckpointError(f"{self.where}: {key} must have {ndim} axes, none empty, got {list(self[key])}")
        return self[key]

    def starts(self, *prefixes: str) -> bool:
        """Say whether any key starts with one of the prefixes."""
        return any(key.startswith(prefixes) for key in self)

    def count(self, key: str, start: int = 0, step: int = 1) -> int:
        """Return how many keys exist with {} replaced by start, start + step, ... up to the first gap."""
        number = 0
        while key.format(start + number * step) in self:
            number += 1
        return number

    def blocks(self, prefix: str) -> int:
        """Return one more than the highest number that stands for {} at the start of a key; 0 where none does."""
        front, _, rest = prefix.partition("{}")
        pattern = re.compile(re.escape(front) + r"(\d{1,6})" + re.escape(rest))
        found = (pattern.match(key) for key in self)
        return max((int(match[1]) + 1 for match in found if match), default=0)


@dataclass
class Found:
    """What the keys and shapes of a file, and the code base's own constants, say about the model."""

    fields: Fields
    """Fields of the spec that are certain."""
    rows: int
    """Patch rows of the position table."""
    taps: tuple[tuple[int, ...], ...] = ()
    """Published answers for ``taps``: one is taken, several or none are asked for."""
    levels: int = 1
    """Taps that the heads need at least; of MLA exactly."""
    decoder_heads: Literal["config", "width", "encoder"] = "config"
    """Attention heads of the mask decoder: free in the config; its width // 64; or the encoder's."""
    asked: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Other fields that nothing in the file says, with the answers that are known to occur."""
    stride: Callable[[int], int] = lambda side: max(side * 2 // 3, 1)
    """Step between windows that the code base takes for a window's side, in pixels."""


@dataclass(frozen=True)
class Family:
    """A code base whose checkpoints can be read (and, where it has heads, written)."""

    name: str
    """Name in the interface."""
    title: str
    """Name in messages."""
    detect: Callable[[Shapes], bool]
    """Says whether the keys are this family's."""
    find: Callable[[Shapes], Found]
    """Reads the model off the keys and shapes."""
    rules: Callable[[ModelSpec], list[Rule]]
    """Rules for a spec; for the head "none" those of an encoder-only file."""
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors
    """Brings variants of the layout to the one that the rules know: prefixes, shapes."""
    dropped: tuple[Dropped, ...] = ()
    """Keys that carry nothing the model uses."""
    config_form: str = ""
    """Form of the config that the code base leaves beside its weights; empty: none is read."""
    read_config: Callable[[Mapping[str, Any], Found], Fields] = lambda values, found: {}
    """Fields of the spec that such a config gives; ``grid_size`` is the picture that the position table is for."""
    dead: Callable[[ModelSpec], dict[str, tuple[int, ...]]] = lambda spec: {}
    """Keys and shapes that the code base's strict loading wants although nothing uses them."""


def at(values: Any, *path: str) -> Any:
    """Return the entry under nested keys, or None where one of them is missing."""
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return None
        values = values[key]
    return values


def given(**fields: Any) -> Fields:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def pair(value: Any, swap: bool = False) -> tuple[Any, Any] | None:
    """Return (height, width) of a side or of two; ``swap`` where they are written (width, height)."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return (value[1], value[0]) if swap else (value[0], value[1])
    return (value, value) if isinstance(value, int) else None


def ratio(hidden: int, width: int) -> float:
    """Return a ratio r with int(width * r) == hidden, as the MLP works its width out."""
    value = hidden / width
    while int(width * value) < hidden:
        value = math.nextafter(value, math.inf)
    return value


def common(values: Iterable[Any], where: str, what: str) -> Any:
    """Return the one value that all agree on.

    Raises: CheckpointError naming what differs.
    """
    distinct = list(dict.fromkeys(values))
    if len(distinct) != 1:
        raise CheckpointError(f"{where}: {what} must be the same for all, got {', '.join(map(str, distinct))}")
    return distinct[0]
