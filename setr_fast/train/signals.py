"""Signals that ask a run to stop: noted here, obeyed by the loop after the step at hand."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from setr_fast.errors import EXIT_INTERRUPTED, EXIT_RESUME, SetrFastError


class Interrupted(SetrFastError):
    """A run was stopped by Ctrl-C; its state is saved."""

    exit_code = EXIT_INTERRUPTED


class Preempted(SetrFastError):
    """A run was told to make room (SIGTERM); its state is saved and the same command with --resume goes on."""

    exit_code = EXIT_RESUME


STOPS: dict[int, type[SetrFastError]] = {int(signal.SIGINT): Interrupted, int(signal.SIGTERM): Preempted}


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM. A second signal interrupts at once, unless a launcher passes signals on."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield received
        return
    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
