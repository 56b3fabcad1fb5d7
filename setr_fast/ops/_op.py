"""One declaration per op: schema, reference, fake, gradient, cases, cost and backends.

``declare_op`` registers ``setr_fast::<name>`` with torch (what users and ``torch.compile`` see) and defines the
same schema as ``setr_fast_native::<name>``, to which the compiled extension adds its kernels. Parity, gradient and
registration tests, benchmark rows and ``doctor`` are generated from the registry ``OPS``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from setr_fast.errors import BackendError
from setr_fast.ops import _adopted, _native

REFERENCE = "reference"
Bench = bool | Literal["full"]
FULL: Literal["full"] = "full"
UNTRIED = (
    "never run on a GPU yet: taken by name (SETR_FAST_BACKEND), or once `setr-fast bench --adopt` found it right here"
)
MOST_CHOICES = 1024  # remembered per op: pictures of any size may come by
_PUBLIC = torch.library.Library("setr_fast", "DEF")
_COMPILED = torch.library.Library("setr_fast_native", "DEF")


@dataclass(frozen=True)
class Cost:
    """The least that any implementation must do: bytes through memory, floating-point operations."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Draw:
    """Random arguments of one dtype on one device; the same seed gives the same values everywhere."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    @classmethod
    def on(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Draw:
        """Return a source of values for ``device``; values are always drawn on the CPU."""
        return cls(torch.device(device), dtype, torch.Generator().manual_seed(seed))

    def __call__(self, *shape: int) -> Tensor:
        """Return standard normal values of the case's dtype."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return values.to(self.device, self.dtype)

    def integers(self, low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        """Return integers of [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator).to(self.device, dtype)


class ShapesOnly(Draw):
    """Arguments without values, in no time, by ``ShapesOnly.on("meta")``: what a case costs depends on shapes alone."""

    def __call__(self, *shape: int) -> Tensor:
        """Return a tensor of the case's dtype that has no memory."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def integers(self, low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        """Return a tensor of integers that has no memory."""
        return torch.empty(shape, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Case:
    """One set of arguments that is tested, and timed where ``bench`` is set.

    FULL: of a size that takes a processor long. It is timed with ``-m full`` only, or on a card, and tested there and
    where SETR_FAST_TESTS=slow asks for it.
    """

    name: str
    make: Callable[[Draw], tuple[Any, ...]]
    bench: Bench = False


@dataclass(frozen=True)
class Backend:
    """One implementation of an op and, as data, what it can do.

    ``find`` returns the callable or raises BackendError with the reason it is missing. ``accepts`` returns further
    reasons against a call, in words, from nothing but device, dtype and shape of tensors and the other arguments.
    ``error_factor`` is how much larger than the reference's own rounding error
    (same dtype, against float64) this backend's error may be; ``why`` explains a factor above two. ``untried``: it has
    never run on the hardware it is for, so it serves only where it is asked for by name or was adopted on the machine
    itself. ``repeats``: equal calls give equal bits. ``note`` is what ``doctor`` adds for the reader.
    """

    name: str
    find: Callable[[str], Callable[..., Any]]
    device: str | None = None
    dtypes: frozenset[torch.dtype] | None = None
    accepts: Callable[..., list[str]] | None = None
    error_factor: float = 2.0
    why: str = ""
    note: str = ""
    untried: bool = False
    repeats: bool = True


def native(
    device: str,
    *,
    dtypes: Iterable[torch.dtype] | None = None,
    accepts: Callable[..., list[str]] | None = None,
    error_factor: float = 2.0,
    why: str = "",
) -> Backend:
    """Declare the kernel that the compiled extension registers for this device."""

    def find(op_name: str) -> Callable[..., Any]:
        missing = _native.missing(device)
        if missing:
            raise BackendError(missing)
        return getattr(torch.ops.setr_fast_native, op_name).default

    untried = device == "cuda"  # until results of a card are committed
    return Backend(
        "native", find, device, _as_set(dtypes), accepts, error_factor, why, UNTRIED if untried else "", untried
    )


def python(
    target: str,
    *,
    device: str | None = None,
    name: str = "native",
    arrays: bool = False,
    adapt: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    dtypes: Iterable[torch.dtype] | None = None,
    accepts: Callable[..., list[str]] | None = None,
    error_factor: float = 2.0,
    why: str = "",
    note: str = "",
    untried: bool = False,
    repeats: bool = True,
) -> Backend:
    """Declare a Python callable ``module:function``, imported on first use.

    With ``arrays`` it is handed NumPy views of the tensors and its array result becomes a tensor, without a copy;
    ``adapt`` wraps it.
    """
    module_name, function_name = target.split(":")

    def find(op_name: str) -> Callable[..., Any]:
        if module_name == _native.MODULE and (missing := _native.missing("cpu")):
            raise BackendError(missing)
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError) as error:
            raise BackendError(f"{target} cannot be imported: {error}") from error
        function = adapt(function) if adapt is not None else function
        return _on_arrays(function) if arrays else function

    note = UNTRIED if untried else note
    return Backend(name, find, device, _as_set(dtypes), accepts, error_factor, why, note, untried, repeats)


@dataclass
class Op:
    """A declared op: call it, or ask which backend would serve a call and why the others would not."""

    name: str
    schema: str
    reference: Callable[..., Any]
    backends: tuple[Backend, ...]
    cases: Callable[[], Iterable[Case]]
    cost: Callable[..., Cost]
    differentiable: bool
    rounds: bool
    prefer: Callable[..., Sequence[str]] | None = None
    _found: dict[tuple[str, str | None], Callable[..., Any] | str] = field(default_factory=dict)
    _choices: dict[tuple[Any, ...], Callable[..., Any]] = field(default_factory=dict)
    _orders: dict[tuple[str, ...], tuple[Backend, ...]] = field(default_factory=dict)

    def __call__(self, *args: Any) -> Any:
        return getattr(torch.ops.setr_fast, self.name).default(*args)

    def run(self, backend_name: str, *args: Any) -> Any:
        """Run one backend by name, without autograd; raise BackendError with every reason if it refuses."""
        if backend_name == REFERENCE:
            return self.reference(*args)
        refusals: list[str] = []
        for candidate in self.backends:
            if candidate.name != backend_name:
                continue
            reasons = self.refusals(candidate, *args)
            if not reasons:
                return self._implementation(candidate)(*args)
            refusals += reasons
        refusals = refusals or [f"it has no backend of that name, only {', '.join(self.names())}"]
        raise BackendError(f"{self.name}: backend {backend_name} cannot serve this call: {'; '.join(refusals)}")

    def names(self) -> list[str]:
        """Names of the backends in order of preference, the reference last."""
        return [*dict.fromkeys(b.name for b in self.backends), REFERENCE]

    def refusals(self, candidate: Backend, *args: Any) -> list[str]:
        """Return all reasons, in words, why ``candidate`` does not serve these arguments."""
        reasons = []
        tensors = [a for a in args if isinstance(a, Tensor)]
        devices = sorted({t.device.type for t in tensors})
        if candidate.device is not None and devices != [candidate.device]:
            reasons.append(f"takes tensors on {candidate.device}, got {', '.join(devices) or 'none'}")
        if candidate.dtypes is not None:
            reasons += [
                f"takes {', '.join(sorted(str(d)[6:] for d in candidate.dtypes))}, got {str(t.dtype)[6:]}"
                for t in tensors
                if t.is_floating_point() and t.dtype not in candidate.dtypes
            ]
        implementation = self._find(candidate)
        if isinstance(implementation, str):
            reasons.append(implementation)
        if candidate.accepts is not None:
            reasons += candidate.accepts(*args)
        return reasons

    def choose(self, *args: Any) -> str:
        """Return the name of the backend that a call with these arguments uses."""
        if _FORCED and (forced := self._forced()):
            return forced
        first = self._first(*args)
        return REFERENCE if first is None else first.name

    def _forced(self) -> str | None:
        wanted = _FORCED.get(self.name) or _FORCED.get(self.name.removesuffix("_backward")) or _FORCED.get("*")
        return wanted if wanted in self.names() else None

    def _first(self, *args: Any) -> Backend | None:
        """Return the first backend, in order of preference, that has no reason against these arguments."""
        preferred = tuple(self.prefer(*args)) if self.prefer is not None else ()
        adopted = _adopted.choice(self.name, args)
        if adopted == REFERENCE:
            return None
        preferred = (adopted, *preferred) if adopted is not None else preferred
        if preferred not in self._orders:
            first = [b for name in preferred for b in self.backends if b.name == name]
            self._orders[preferred] = (*first, *(b for b in self.backends if b.name not in preferred))
        order = self._orders[preferred]
        if _adopted.takes_untried():
            return next((b for b in sorted(order, key=lambda b: not b.untried) if self._serves(b, args)), None)
        return next((b for b in order if (not b.untried or b.name == adopted) and self._serves(b, args)), None)

    def _serves(self, candidate: Backend, args: tuple[Any, ...]) -> bool:
        """Return whether there is no refusal: the same checks, but in no words and up to the first that fails."""
        for arg in args:
            if not isinstance(arg, Tensor):
                continue
            if candidate.device is not None and arg.device.type != candidate.device:
                return False
            if candidate.dtypes is not None and arg.is_floating_point() and arg.dtype not in candidate.dtypes:
                return False
        if candidate.device is not None and not any(isinstance(a, Tensor) for a in args):
            return False
        if isinstance(self._find(candidate), str):
            return False
        return candidate.accepts is None or not candidate.accepts(*args)

    def _find(self, candidate: Backend) -> Callable[..., Any] | str:
        key = (candidate.name, candidate.device)
        if key not in self._found:
            try:
                self._found[key] = candidate.find(self.name)
            except BackendError as error:
                self._found[key] = str(error)
        return self._found[key]

    def _implementation(self, candidate: Backend) -> Callable[..., Any]:
        implementation = self._find(candidate)
        assert not isinstance(implementation, str), implementation
        return implementation

    def _dispatch(self, *args: Any) -> Any:
        if _FORCED and (forced := self._forced()):
            return self.run(forced, *args)
        return self._remembered(*args)(*args)

    def _remembered(self, *args: Any) -> Callable[..., Any]:
        """Return what serves these arguments, chosen once per device, dtype and shape of all tensors."""
        facts = [(a.device, a.dtype, a.shape) if isinstance(a, Tensor) else a for a in args]
        key = (_adopted.takes_untried(), *facts)
        try:
            chosen = self._choices.get(key)
        except TypeError:  # a list among the arguments
            return self._chosen(*args)
        if chosen is None:
            if len(self._choices) >= MOST_CHOICES:
                self._choices.clear()
            chosen = self._choices[key] = self._chosen(*args)
        return chosen

    def _chosen(self, *args: Any) -> Callable[..., Any]:
        first = self._first(*args)
        return self.reference if first is None else self._implementation(first)


OPS: dict[str, Op] = {}


def declare_op(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    cases: Callable[[], Iterable[Case]],
    cost: Callable[..., Cost],
    backends: tuple[Backend, ...] = (),
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    rounds: bool | None = None,
    prefer: Callable[..., Sequence[str]] | None = None,
) -> Op:
    """Register an op and return it.

    ``reference`` is plain PyTorch on any device and never refuses; ``fake`` states shapes, dtypes and strides;
    ``save(ctx, inputs, output)`` and ``backward(ctx, *gradients)`` make it differentiable; ``rounds``: backends may
    differ by rounding (as a rule those of differentiable ops), all others agree bit for bit. ``backends`` stand in
    order of preference; ``prefer(*args)`` names those to try first, where that depends on the card. What is forced for
    an op holds for its ``<op>_backward`` too.
    """
    name = schema.split("(")[0]
    differentiable = backward is not None
    rounds = differentiable if rounds is None else rounds
    op = Op(name, schema, reference, backends, cases, cost, differentiable, rounds, prefer)
    _PUBLIC.define(schema)
    _COMPILED.define(schema)
    _PUBLIC.impl(name, op._dispatch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"setr_fast::{name}", fake, lib=_PUBLIC)
    torch.library.register_fake(f"setr_fast_native::{name}", fake, lib=_COMPILED)  # exported programs may name it
    if backward is not None:
        torch.library.register_autograd(f"setr_fast::{name}", backward, setup_context=save, lib=_PUBLIC)
    OPS[name] = op
    return op


@contextmanager
def backend(choice: str) -> Iterator[None]:
    """Force a backend: ``"reference"`` for every op that has it, ``"attention=triton,reference"`` op by op.

    A forced backend that cannot serve a call raises BackendError; it never falls back. Ops that have no backend of the
    name choose as usual. The environment variable SETR_FAST_BACKEND takes the same text.
    """
    before = dict(_FORCED)
    _FORCED.clear()
    _FORCED.update(_parse(choice))
    try:
        check_forced("backend")
        yield
    finally:
        _FORCED.clear()
        _FORCED.update(before)


def check_forced(where: str) -> None:
    """Raise BackendError if what is forced is no backend of any op, or no op."""
    known = {name for op in OPS.values() for name in op.names()}
    if unknown := sorted(set(_FORCED.values()) - known):
        raise BackendError(f"{where}: must name {', '.join(sorted(known))}, got {', '.join(unknown)}")
    if unknown := sorted(set(_FORCED) - set(OPS) - {"*"}):
        raise BackendError(f"{where}: there is no op {', '.join(unknown)}, only {', '.join(sorted(OPS))}")


def _parse(choice: str) -> dict[str, str]:
    forced = {}
    for part in filter(None, (p.strip() for p in choice.split(","))):
        op_name, _, name = part.rpartition("=")
        forced[op_name or "*"] = name
    return forced


_FORCED: dict[str, str] = _parse(os.environ.get("SETR_FAST_BACKEND", ""))


def _as_set(dtypes: Iterable[torch.dtype] | None) -> frozenset[torch.dtype] | None:
    return None if dtypes is None else frozenset(dtypes)


def _on_arrays(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def call(*args: Any) -> Tensor:
        return torch.from_numpy(function(*(a.numpy() if isinstance(a, Tensor) else a for a in args)))

    return call
