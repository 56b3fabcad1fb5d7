"""Memory and work of one training step, found by running it on tensors that have shapes but no contents.

Every operator of forward and backward is seen as it would run: what it allocates and frees, how many floating-point
operations it does, how many bytes it reads and writes. So the figures follow the model as it is, our own ops included.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.nn import chance
from setr_fast.ops import OPS
from setr_fast.train.heap import Event
from setr_fast.train.options import ParallelConfig, TrainConfig
from setr_fast.train.parallel import spread
from setr_fast.train.ranks import Ranks

PARTS = ("activations", "logits", "gradients")


@dataclass(frozen=True)
class Work:
    """What one operator does: floating-point operations, bytes read and written, and whether in 16 bits."""

    flops: int
    bytes: int
    half: bool


@dataclass
class Profile:
    """One step on one device, without optimiser: bytes by part when most are in use, and all work."""

    peak: dict[str, int] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    blocks: list[Event] = field(default_factory=list)
    """Tensors as they come and go."""

    @property
    def flops(self) -> int:
        """Floating-point operations of forward and backward."""
        return sum(work.flops for work in self.work)

    def seconds(self, rate: Callable[[bool], float], bandwidth: float) -> float:
        """Return the time if each operator is bound by arithmetic (operations/s by half) or by memory (bytes/s)."""
        return sum(max(w.flops / rate(w.half), w.bytes / bandwidth) for w in self.work)


@functools.lru_cache(maxsize=64)
def profile_step(spec: ModelSpec, batch: int, config: TrainConfig, *, bf16: bool) -> Profile:
    """Run forward and backward of ``batch`` pictures of the training crop, in ``config.accumulate`` parts."""
    ranks = Ranks(0, 1, torch.device("cpu"))
    parts = min(config.accumulate, batch)
    size = math.ceil(batch / parts)
    with torch.device("meta"):  # initial values depend on contents, which fake tensors lack
        model = SegmentationModel(spec).train()
    with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as stack:
        model.to_empty(device="cpu")
        loss = spread(model, ranks, replace(config, compile=False), ParallelConfig(), fsdp=False, bf16=bf16)
        image = torch.empty(size, spec.in_chans, *spec.image_size)
        label = torch.empty(size, *spec.image_size, dtype=torch.uint8)
        rows = torch.empty(size, dtype=torch.int64)
        watch = stack.enter_context(_Watch())
        _follow(model, watch)
        watch.add(image, "activations")
        watch.add(label, "activations")
        stack.enter_context(chance.places(rows))
        for _ in range(min(parts, 2)):  # the second part meets the gradients of the first
            watch.part = "activations"
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                value, _ = loss(image, label)
            watch.part = "activations"
            value.backward()
            del value
        repeated = parts / min(parts, 2)
        scaled = [Work(int(w.flops * repeated), int(w.bytes * repeated), w.half) for w in watch.work]
        return Profile(dict(watch.peak), scaled, list(watch.blocks))


def _follow(model: SegmentationModel, watch: _Watch) -> None:
    """Tell the watch when logits begin, and which tensors are gradients."""
    all_logits = model.all_logits

    def then_logits(image: Tensor) -> list[Tensor]:
        logits = all_logits(image)
        watch.part = "logits"
        return logits

    model.all_logits = then_logits  # type: ignore[method-assign]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(watch.is_gradient)


class _Watch(TorchDispatchMode):
    """Counts the bytes of all storages that operators made and that are still there, by part."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "activations"
        self.work: list[Work] = []
        self.blocks: list[Event] = []
        self.peak: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._storages: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.setr_fast.chance_kept.default:  # it needs more meanwhile than it returns
            with self:
                return chance.kept_values(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        tensors_in: list[Tensor] = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        tensors_out: list[Tensor] = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        known = {id(t.untyped_storage()) for t in tensors_in}
        fresh = [t for t in tensors_out if id(t.untyped_storage()) not in known]
        for tensor in fresh:
            self.add(tensor, self.part)
        if fresh or func._schema.is_mutable:  # a view moves nothing
            moved = sum(t.numel() * t.element_size() for t in (*tensors_in, *tensors_out))
            half = any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors_in)
            self.work.append(Work(_flops(func, args, kwargs or {}, out), moved, half))
        return out

    def add(self, tensor: Tensor, part: str) -> None:
        """Count a tensor's storage, until it is freed, as long as it is not counted already."""
        storage = tensor.untyped_storage()
        if storage in self._storages:
            return
        entry: list[Any] = [part, storage.nbytes(), len(self.blocks)]
        self._storages[storage] = entry
        self._now[part] += entry[1]
        if entry[1]:
            self.blocks.append((entry[2], entry[1]))
        weakref.finalize(storage, self._free, entry)
        if sum(self._now.values()) > sum(self.peak.values()):
            self.peak = self._now.copy()

    def is_gradient(self, parameter: Tensor) -> None:
        """Count a parameter's gradient as such."""
        assert parameter.grad is not None
        entry = self._storages.get(parameter.grad.untyped_storage())
        if entry is not None and entry[0] != "gradients":
            self._now[entry[0]] -= entry[1]
            self._now["gradients"] += entry[1]
            entry[0] = "gradients"

    def _free(self, entry: list[Any]) -> None:
        self._now[entry[0]] -= entry[1]
        if entry[1]:
            self.blocks.append((entry[2], 0))


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    name = func.name().split("::")
    if name[0] == "setr_fast" and name[1].split(".")[0] in OPS:
        return OPS[name[1].split(".")[0]].cost(*args).flops
    formula = flop_registry.get(func.overloadpacket)
    return int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0
