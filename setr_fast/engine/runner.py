"""A model as the engine uses it: windows in, small logits out, and how many windows fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from setr_fast.data.transforms import normalise_table
from setr_fast.engine.allocator import give_back
from setr_fast.engine.graphs import Graphs
from setr_fast.engine.memory import FIXED, Read, assembly_bytes, batch_bytes
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.sizes import parse_bytes
from setr_fast.engine.views import Assembly, Geometry, sent
from setr_fast.engine.waiting import with_waiting_room
from setr_fast.errors import ConfigError
from setr_fast.precision.prepare import kept_bytes, prepared

MOST_WINDOWS = 16
"""Together, where the memory budget would allow more: larger batches gain nothing."""
TIGHT = 0.75
"""Where this share of the memory budget is in use, what a batch leaves free goes back to the system at once."""


class Runner:
    """Runs a model on batches of windows by a configuration whose open fields are settled."""

    def __init__(self, model: nn.Module, config: InferenceConfig, waiting: int = 0) -> None:
        """``waiting``: bytes of the memory budget that are for other pictures."""
        self.model, self.config = model, config
        self.spec: Any = model.spec
        self.device = device_of(model)
        self.rules: Any = {"rule": config.window_rule, "probabilities": config.merge == "probabilities"}
        self._small = hasattr(model, "logits") and hasattr(model, "logits_geometry")
        self._least = _least_size(self.spec)
        self._fixed = FIXED + kept_bytes(model, config.precision)
        self._waiting = waiting if self.device.type == "cpu" else 0  # a card's memory holds no other pictures
        self._room = max(parse_bytes(config.memory_budget) - self._waiting - self._fixed, 0)
        self._beside = 0
        self._known: dict[tuple[tuple[int, int], int], int] = {}
        self._canvas = self._room // 2 if config.canvas_mib is None else config.canvas_mib * 2**20

    def run(self, windows: Tensor) -> Tensor:
        """Return the small logits of windows of one size.

        The model is made ready for the precision with the first windows that come, and kept so.
        Shapes: bytes [b, h, w, 3] or normalised [b, C, h, w] -> [b, K, ...].
        """
        windows = sent(windows, self.device)
        height, width = windows.shape[1:3] if windows.dtype is torch.uint8 else windows.shape[2:]
        below, right = max(self._least[0] - height, 0), max(self._least[1] - width, 0)
        if below or right:  # with the mean colour, which is no byte
            windows = pad(self._normalised(windows), (0, right, 0, below))
        ready = prepared(self.model, self.config.precision, windows, self.config.gelu == "exact")
        if self.config.cuda_graphs and windows.is_cuda:
            if ready.replay is None:
                ready.replay = Graphs(partial(_logits, ready.model, ready.autocast, self._small))
            logits = ready.replay(windows)
        else:
            logits = _logits(ready.model, ready.autocast, self._small, windows)
        if self._is_tight((height, width), len(windows)) and not windows.is_cuda:
            give_back()
        return logits if self._small else logits[..., :height, :width]

    def _normalised(self, windows: Tensor) -> Tensor:
        if windows.dtype is not torch.uint8:
            return windows
        table = normalise_table(self.spec.mean, self.spec.std).to(windows.device)
        return torch.stack([table[c][windows[..., c].long()] for c in range(len(table))], 1)

    def geometry(self, window: tuple[int, int]) -> Geometry:
        """Return the small logits of a window of this size; what lies beyond the window is padding."""
        if not self._small:
            return Geometry(window, window, False)
        model: Any = self.model
        low, padded = model.logits_geometry((max(window[0], self._least[0]), max(window[1], self._least[1])))
        return Geometry(low, padded, self.spec.align_corners)

    def batch_of(self, window: tuple[int, int], held: int = 0) -> int:
        """Return how many windows of this size pass through the model together, beside ``held`` bytes of pictures."""
        if self.config.window_batch is not None:
            return self.config.window_batch
        fits = (count for count in range(MOST_WINDOWS, 1, -1) if self._batch_bytes(window, count) <= self._room - held)
        self._beside = held
        return next(fits, 1)

    def _is_tight(self, window: tuple[int, int], count: int) -> bool:
        """Whether a batch leaves little room for what the allocator keeps of it; to fetch that again costs time."""
        if self.config.window_batch is not None:
            return False
        return self._beside + self._batch_bytes(window, count) > TIGHT * self._room

    def bytes_of(self, assembly: Assembly) -> int:
        """Return what a picture under way holds."""
        # Logits are bfloat16 where the heads are; what auto will choose is not known yet.
        return assembly_bytes(assembly, 2 if self.config.precision == "bf16" else 4)

    def held(self, assembly: Assembly) -> int:
        """Return the bytes that pictures under way may hold together if this is one of them, and not alone."""
        if self.config.canvas_mib is not None:
            return self._canvas
        return min(self._canvas, self._room - self._largest(assembly))

    def share(self, assembly: Assembly) -> int:
        """Return the bytes that a picture with such windows may hold alone: what two windows leave, but half at least,
        as long as one window has room."""
        if self.config.canvas_mib is not None:
            return self._canvas
        return min(max(self._canvas, self._room - self._largest(assembly, 2)), self._room - self._largest(assembly))

    def check(self, assembly: Assembly) -> None:
        """Raise ConfigError if a picture (or its narrowest strip) and one of its windows do not fit into the budget."""
        if self.config.window_batch is not None or self.config.canvas_mib is not None:
            return  # said by hand
        least, budget = self._fixed + self.bytes_of(assembly) + self._largest(assembly), self.config.memory_budget
        if least > self._fixed + self._room and self.device.type == "cpu":
            least = with_waiting_room(least) if self._waiting else least
            picture, window = ("x".join(map(str, size)) for size in (assembly.size, assembly.windows()[0]))
            raise ConfigError(
                f"memory_budget: must be at least {math.ceil(least / 2**20)}MiB for a picture of {picture} in windows "
                f"of {window}, got {budget}; smaller windows (--mode slide, --crop) take less"
            )

    def _largest(self, assembly: Assembly, count: int = 1) -> int:
        return max(self._batch_bytes(window, count) for window in assembly.windows())

    def _batch_bytes(self, window: tuple[int, int], count: int) -> int:
        if (window, count) not in self._known:
            self._known[window, count] = self._counted(window, count)
        return self._known[window, count]

    def _counted(self, window: tuple[int, int], count: int) -> int:
        padded = window[0] < self._least[0] or window[1] < self._least[1]
        bytes_ = self.config.resize_rule == "opencv" and getattr(self.model, "takes_bytes", False) and not padded
        resized = self.config.scales != (1.0,) or self.config.resize_short or self.config.min_short
        read: Read = ("resized" if resized else "bytes") if bytes_ else "numbers"
        geometry = self.geometry(window)
        return batch_bytes(self.spec, geometry, window, count, precision=self.config.precision, read=read)


def _logits(model: Any, autocast: bool, small: bool, windows: Tensor) -> Tensor:
    """No method: what is recorded on a GPU must not keep a runner, and with it the model, alive."""
    with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=autocast):
        logits: Tensor = model.logits(windows) if small else model(windows)
    return logits


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model computes on."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and each back in the mode it was in (frozen parts stay as they were)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _least_size(spec: Any) -> tuple[int, int]:
    """Smallest picture the model takes: any, a patch, or (positions that cannot be resized) exactly its own grid."""
    patch: int = getattr(spec, "patch_size", 1)
    if getattr(spec, "pos_resize", None) == "none":
        return spec.pos_grid[0] * patch, spec.pos_grid[1] * patch
    return (patch, patch) if getattr(spec, "fit", "pad") == "floor" else (1, 1)
