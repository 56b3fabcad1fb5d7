"""Total accounting of keys: all of a file's are used or dropped for a named reason, all of ours are filled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from setr_fast.checkpoints.families.family import Family
from setr_fast.checkpoints.memory import contiguous
from setr_fast.checkpoints.rules import Dropped, Rule
from setr_fast.errors import CheckpointError
from setr_fast.fields import nearest
from setr_fast.models.store import finite_fault

_NAMED = 5  # faults that one message names


@dataclass
class Accounting:
    """What became of every key."""

    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Our key: the keys of the file that it was made of."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Key of the file: why nothing uses it."""
    filled: dict[str, str] = field(default_factory=dict)
    """Our key that the file does not hold: why, and what it holds now."""
    changed: dict[str, str] = field(default_factory=dict)
    """Our key that is no longer what the file holds: what was done to it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "used": {key: list(sources) for key, sources in self.used.items()},
            "dropped": dict(self.dropped),
            "filled": dict(self.filled),
            "changed": dict(self.changed),
        }

    def drop_target(self, target: str, reason: str) -> None:
        """Move the sources of one of our keys to the dropped ones."""
        for source in self.used.pop(target, ()):
            self.dropped[source] = reason


def map_tensors(
    family: Family, rules: list[Rule], tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], Accounting]:
    """Turn the tensors of a file into ours: float32, contiguous, in memory of their own.

    ``wanted`` is our state dict, on the meta device. ``tensors`` is emptied on the way, so that at no time the memory
    of two copies of the model is taken.

    Raises: CheckpointError listing unknown, missing, wrongly shaped, unequal and not finite tensors.
    """
    account, faults = _check(family, rules, tensors, wanted)
    state: dict[str, Tensor] = {}
    taken: set[int] = set()
    for rule in rules if not faults else ():
        faults += _value_faults(rule, tensors)  # here, where the transform finds the values in the cache
        present = [tensors.pop(key) for key in rule.sources if key in tensors]
        want = wanted[rule.target]
        if present:
            state[rule.target] = _own(rule.transform.load(present), want.dtype, taken)
        else:
            state[rule.target] = torch.zeros(want.shape, dtype=want.dtype)
        del present
    tensors.clear()
    if faults:
        raise CheckpointError(f"{where}: weights must fit {family.title}'s layout: {listed(faults)}")
    return state, account


def dropped_reason(dropped: Iterable[Dropped], key: str) -> str | None:
    """Return why a key is dropped, or None where it is not."""
    return next((entry.reason for entry in dropped if re.fullmatch(entry.pattern, key)), None)


def listed(faults: list[str]) -> str:
    """Return the first faults and how many more there are."""
    more = f" (and {len(faults) - _NAMED} more)" if len(faults) > _NAMED else ""
    return "; ".join(faults[:_NAMED]) + more


def _check(
    family: Family, rules: list[Rule], tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[Accounting, list[str]]:
    account, faults, missing = Accounting(), [], []
    for rule in rules:
        if rule.target not in wanted:
            faults.append(f"{rule.target} is not in the model (change the overrides)")
            continue
        shapes = rule.source_shapes(wanted[rule.target])
        present = {key: shape for key, shape in zip(rule.sources, shapes, strict=True) if key in tensors}
        for key, shape in present.items():
            if tuple(tensors[key].shape) != shape:
                faults.append(f"{key} must be {list(shape)}, got {list(tensors[key].shape)}")
            if tensors[key].is_floating_point() != wanted[rule.target].is_floating_point():
                noun = "floating point" if wanted[rule.target].is_floating_point() else "whole numbers"
                faults.append(f"{key} must be {noun}, got {tensors[key].dtype}")
        if present:
            account.used[rule.target] = tuple(present)
            if not rule.copies:
                missing += [key for key in rule.sources if key not in present]
        elif rule.optional:
            account.filled[rule.target] = rule.optional
        else:
            missing += rule.sources
    claimed = {key for sources in account.used.values() for key in sources}
    unknown = []
    for key in tensors:
        if key not in claimed:
            reason = dropped_reason(family.dropped, key)
            if reason is None:
                unknown.append(key)
            else:
                account.dropped[key] = reason
    covered = {rule.target for rule in rules}
    # Near names are looked for only where they are told: hundreds of searches among hundreds of names take seconds.
    faults += [f"{key} is missing{nearest(key, unknown) if n < _NAMED else ''}" for n, key in enumerate(missing)]
    faults += [
        f"{key} {list(tensors[key].shape)} is not known{nearest(key, missing) if n < _NAMED else ''}"
        for n, key in enumerate(unknown)
    ]
    faults += [f"{key} of the model has no place in such files" for key in wanted if key not in covered]
    return account, faults


def _value_faults(rule: Rule, tensors: Mapping[str, Tensor]) -> list[str]:
    present = [key for key in rule.sources if key in tensors]
    checked = present[:1] if rule.copies else present
    faults = [fault for key in checked if (fault := finite_fault(key, tensors[key]))]
    if rule.copies and not faults:
        first = present[0]
        faults += [
            f"{key} must equal {first} (one shared module), got other values"
            for key in present[1:]
            if not torch.equal(tensors[key], tensors[first])
        ]
    return faults


def _own(tensor: Tensor, dtype: torch.dtype, taken: set[int]) -> Tensor:
    """Return the tensor with a storage that is exactly its own, copied only where it is not."""
    tensor = tensor.detach().to("cpu", dtype)
    tensor = contiguous(tensor)
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.nbytes or storage.data_ptr() in taken:
        tensor = tensor.clone()
    taken.add(tensor.untyped_storage().data_ptr())
    return tensor
