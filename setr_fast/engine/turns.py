"""The processors for the model, or for what reads and writes pictures, never for both at once.

A model that computes on a processor has a thread on every core, and each of its layers ends when the last thread does.
A picture decoded meanwhile takes one core, and the other cores wait, actively, until the layer's part on it is done.
Both take turns instead, and each has all cores in its own (docs/design/0008 says what that was measured to bring).
What waits for a disk or a net belongs outside the turns: nobody waits for it then.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_LONGEST = 0.5
"""Seconds after which the model gives way between two pictures: slow ones are told of, and written, one by one."""

_NEAR, _PIECE = 16, 2**20
"""Pieces of a file, and their bytes, that are fetched; while these are decoded the system reads on by itself."""


class Turns:
    """Turns of one model, in one thread, and of any number of threads beside it.

    Who waits when a turn ends has the next one, and who comes later waits for the one after that: nobody starves.
    """

    def __init__(self, active: bool = True) -> None:
        """``active``: false where nobody ever waits, since the model computes elsewhere."""
        self.active = active
        self.held = False
        self._changed = threading.Condition()
        self._wanted = False  # by the model: who comes now waits until it has had its turn
        self._inside = 0
        self._waiting = 0
        self._ended = 0  # turns of the model
        self._since = 0.0

    def take(self) -> None:
        """Give the model its turn, as soon as those beside it whose turn it is are done; nothing if it has it."""
        if not self.active or self.held:
            return
        with self._changed:
            self._wanted = True
            try:
                self._changed.wait_for(lambda: self._inside == 0)
                self.held, self._since = True, time.monotonic()
            finally:
                self._wanted = False
                if not self.held:  # interrupted
                    self._let_in()

    def give(self) -> None:
        """End the model's turn, if it has it."""
        with self._changed:
            if self.held:
                self.held = False
                self._let_in()

    def overdue(self) -> bool:
        """Return whether the model has had its turn for long."""
        return self.held and time.monotonic() - self._since > _LONGEST

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Have a turn beside the others of the model's stages: what happens within wants a processor, and no disk."""
        if not self.active:
            yield
            return
        with self._changed:
            if self.held or self._wanted:
                self._waiting += 1
                ended = self._ended
                self._changed.wait_for(lambda: self._ended > ended)
            else:
                self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def _let_in(self) -> None:
        self._inside, self._waiting = self._inside + self._waiting, 0
        self._ended += 1
        self._changed.notify_all()


def turns_of(device: torch.device) -> Turns:
    """Return the turns of a model on ``device``: none on a card, nor where its threads leave cores free.

    With two logical processors to a core, torch's threads are half as many as these: fewer leave cores.
    """
    return Turns(device.type == "cpu" and 2 * torch.get_num_threads() >= processors())


def bring_near(path: Path) -> None:
    """Have the system fetch a file from its disk, so that decoding it waits for none; one that cannot be read is left
    to its reader, which says why."""
    try:
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                for _ in range(_NEAR):
                    if not file.read(_PIECE):
                        break
    except OSError:
        pass


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
