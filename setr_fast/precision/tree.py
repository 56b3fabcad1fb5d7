"""A model with some of its modules exchanged, beside the model itself: all weights that stay are shared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def with_modules(model: AnyModule, exchange: Callable[[str, nn.Module], nn.Module | None]) -> AnyModule:
    """Return the same tree of modules in eval mode, with shared parameters, in which some modules are others.

    ``exchange(name, module)`` returns what takes a module's place, or None to keep it and look inside it. The model
    that is given stays as it is.
    """
    return cast(AnyModule, _with_modules("", model, exchange, {}))


def _with_modules(
    name: str,
    module: nn.Module,
    exchange: Callable[[str, nn.Module], nn.Module | None],
    done: dict[int, nn.Module],
) -> nn.Module:
    if id(module) in done:  # a module in two places (shared heads) stays one module
        return done[id(module)]
    other = exchange(name, module)
    if other is None:
        other = copy.copy(module)
        prefix = f"{name}." if name else ""
        children = ((key, child) for key, child in module._modules.items())
        other._parameters, other._buffers = dict(module._parameters), dict(module._buffers)
        other._modules = {
            key: None if child is None else _with_modules(prefix + key, child, exchange, done)
            for key, child in children
        }
    other.training = False
    done[id(module)] = other
    return other


def fingerprint(model: nn.Module) -> tuple[tuple[int, int, object], ...]:
    """Return what changes when any weight is replaced, moved, or written to by PyTorch."""
    return tuple((tensor.data_ptr(), _version(tensor), tensor.dtype) for tensor in _tensors(model))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _version(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # made under inference_mode: nobody counts
        return -1
