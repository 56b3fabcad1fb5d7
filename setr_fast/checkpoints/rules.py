"""Rules between the tensors of a file and ours: which keys, and how they are laid out. Every rule works both ways.

A family (``families/``) is a list of rules per spec. Loading applies ``load`` to the source tensors; exporting applies
``store`` to our tensor. ``store`` on the meta device also tells the shapes that a file must have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from setr_fast.checkpoints.flax_layout import joined
from setr_fast.checkpoints.memory import copy_turned


@dataclass(frozen=True)
class Transform:
    """How the tensors of one or more source keys become one of ours, and back."""

    load: Callable[[Sequence[Tensor]], Tensor]
    """Source tensors, in the order of the rule's keys -> our tensor."""
    store: Callable[[Tensor], Sequence[Tensor]]
    """Our tensor -> source tensors, one per key; may be views of it."""


@dataclass(frozen=True)
class Rule:
    """One of our tensors and where it comes from."""

    sources: tuple[str, ...]
    """Keys in the file; none where the format does not hold this tensor."""
    target: str
    """Our key."""
    transform: Transform
    copies: bool = False
    """The sources are equal copies of one tensor: the file must hold at least one, all that it holds must agree."""
    optional: str = ""
    """Why the file may lack the sources; the target is then zero. Empty: it must hold them."""

    def source_shapes(self, target: Tensor) -> list[tuple[int, ...]]:
        """Return the shape of each source, given our tensor (the meta device will do)."""
        return [tuple(tensor.shape) for tensor in self.transform.store(target)]


@dataclass(frozen=True)
class Dropped:
    """Keys that a file may hold and that no computation of the model uses."""

    pattern: str
    """Regular expression of the whole key."""
    reason: str


# --- transforms ----------------------------------------------------------------------------------------------


def _one(function: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Transform:
    return Transform(lambda tensors: function(tensors[0]), lambda tensor: [back(tensor)])


SAME = _one(lambda x: x, lambda x: x)
TRANSPOSED = _one(lambda x: x.T, lambda x: x.T)  # linear weights of Paddle and Flax: [in, out]
CONV_1X1 = _one(lambda x: x.flatten(1), lambda x: x[:, :, None, None])  # for one of our linear layers
FLAX_CONV = _one(lambda x: x.permute(3, 2, 0, 1), lambda x: x.permute(2, 3, 1, 0))  # [h, w, in, out]
ABSENT = Transform(lambda tensors: tensors[0], lambda tensor: [])


def copies(count: int, transform: Transform = SAME) -> Transform:
    """One of our tensors, repeated under several keys of the file."""
    return Transform(transform.load, lambda tensor: [transform.store(tensor)[0]] * count)


def flat_patches(in_chans: int, patch: int) -> Transform:
    """Patch projection stored as a matrix: [D, C * P * P]."""
    return _one(lambda x: x.unflatten(1, (in_chans, patch, patch)), lambda x: x.flatten(1))


def flax_qkv(heads: int) -> Transform:
    """Three kernels [D, heads, E] (query, key, value) for one weight [3 * D, D]."""

    def load(tensors: Sequence[Tensor]) -> Tensor:
        matrices = [kernel.flatten(1) for kernel in tensors]
        whole = joined([matrix.T for matrix in matrices])
        if whole is not None:
            return whole
        out = torch.empty(sum(m.shape[1] for m in matrices), matrices[0].shape[0], dtype=matrices[0].dtype)
        for matrix, part in zip(matrices, out.split([m.shape[1] for m in matrices]), strict=True):
            copy_turned(matrix, part)
        return out

    def store(tensor: Tensor) -> list[Tensor]:
        return [part.T.unflatten(1, (heads, -1)) for part in tensor.chunk(3)]

    return Transform(load, store)


def flax_qkv_bias(heads: int) -> Transform:
    """Three biases [heads, E] for one of [3 * D]."""

    def store(tensor: Tensor) -> list[Tensor]:
        return [part.unflatten(0, (heads, -1)) for part in tensor.chunk(3)]

    return Transform(lambda tensors: torch.cat([bias.flatten() for bias in tensors]), store)


def flax_out(heads: int) -> Transform:
    """Output kernel [heads, E, D] for a weight [D, D]."""
    return _one(lambda x: x.flatten(0, 1).T, lambda x: x.T.unflatten(0, (heads, -1)))


# --- rules of whole layers -----------------------------------------------------------------------------------

NO_COUNTER = "the format holds no count of batches; it starts at 0"


def same(source: str, target: str) -> Rule:
    """One tensor, as it is."""
    return Rule((source,), target, SAME)


def affine(source: str, target: str, weight: Transform = SAME, bias: bool = True) -> list[Rule]:
    """``weight`` and ``bias`` of a layer. ``source`` ends with its separator: ``norm1.`` or ``in_proj_``."""
    rules = [Rule((source + "weight",), target + ".weight", weight)]
    return [*rules, same(source + "bias", target + ".bias")] if bias else rules


def batch_norm(source: str, target: str, paddle: bool = False) -> list[Rule]:
    """Weight, bias, running statistics and (torch only) the count of batches."""
    mean, variance = ("_mean", "_variance") if paddle else ("running_mean", "running_var")
    counter = target + ".num_batches_tracked"
    return [
        *affine(source, target),
        same(source + mean, target + ".running_mean"),
        same(source + variance, target + ".running_var"),
        Rule((), counter, ABSENT, optional=NO_COUNTER)
        if paddle
        else Rule((source + "num_batches_tracked",), counter, SAME, optional="files of old PyTorch versions lack it"),
    ]


def shared(rules_of: Callable[[str], list[Rule]], sources: Sequence[str]) -> list[Rule]:
    """Rules of one layer that the file repeats under several names.

    ``rules_of`` gives the rules for one name; the others must list the same targets in the same order.
    """
    if len(sources) == 1:
        return rules_of(sources[0])
    merged = []
    for group in zip(*(rules_of(source) for source in sources), strict=True):
        first = group[0]
        keys = tuple(key for rule in group for key in rule.sources)
        transform = copies(len(keys), first.transform) if keys else first.transform
        merged.append(Rule(keys, first.target, transform, copies=bool(keys), optional=first.optional))
    return merged


# --- exporting -----------------------------------------------------------------------------------------------


def export_tensors(rules: Sequence[Rule], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file in a family's layout: new memory for each, contiguous.

    Raises: KeyError for a target that the state lacks.
    """
    result: dict[str, Tensor] = {}
    for rule in rules:
        parts = rule.transform.store(state[rule.target])
        for key, part in zip(rule.sources, parts, strict=True):
            result[key] = part.detach().clone(memory_format=torch.contiguous_format)
    return result


def fold_conv_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors without the biases of convolutions in front of a batch norm, their effect in its mean.

    In training the batch norm cancels such a bias; at inference (x + b) - mean is x - (mean - b).
    """
    result = dict(state)
    for name in [key for key in state if key.endswith(".conv.bias")]:
        mean = name.removesuffix("conv.bias") + "bn.running_mean"
        result[mean] = state[mean] - result.pop(name)
    return result


def zero_conv_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors with a zero bias in every convolution in front of a batch norm that has none."""
    result = dict(state)
    for name in [key for key in state if key.endswith(".bn.running_mean")]:
        result.setdefault(name.removesuffix("bn.running_mean") + "conv.bias", torch.zeros_like(state[name]))
    return result
