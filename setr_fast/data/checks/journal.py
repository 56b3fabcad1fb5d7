"""What was found about each sample, kept on disk: a check goes on where it broke off, in memory that does not grow.

One SQLite file per data folder and set of rules, in the user's cache folder. An entry holds as long as size and time of
change of the sample's files stay as they were.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sqlite3
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from setr_fast.data.checks.inspection import Inspection, Inspector, stamp
from setr_fast.data.layouts.folder import Sample
from setr_fast.errors import SetrFastError

logger = logging.getLogger("setr_fast")

KEPT_FROM = 1000
"""Samples from which a check is kept on disk: fewer are read again in seconds."""
PROCESSES_FROM = 400
"""Samples from which processes, half a second each to start, are quicker than threads."""
_CHUNK = 32
_UNDER_WAY = 4 * (os.cpu_count() or 1)
_COMMIT_SECONDS = 1.0


def cache_folder() -> Path:
    """Return where journals are kept: SETR_FAST_CACHE, or the user's cache folder."""
    own = os.environ.get("SETR_FAST_CACHE")
    if own:
        return Path(own) / "check"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "setr_fast" / "check"


class Journal:
    """Findings by sample."""

    def __init__(self, root: Path, inspector: Inspector, count: int) -> None:
        self._inspector = inspector
        self._base: sqlite3.Connection | None = None
        if count >= KEPT_FROM:
            rules = hashlib.sha256(repr((os.path.realpath(root), inspector)).encode()).hexdigest()[:24]
            self._base = _opened(cache_folder() / f"{rules}.sqlite")
        if self._base is None:
            self._base = _prepared(sqlite3.connect(":memory:"))

    def close(self) -> None:
        """Write what is not yet written."""
        assert self._base is not None
        self._base.commit()
        self._base.close()

    def find(self, sample: Sample) -> Inspection:
        """Return what was found about a sample."""
        text = self._text(sample)
        return self._inspector.inspect(sample) if text is None else Inspection.from_text(sample, text)

    def fill(self, samples: Iterable[Sample], count: int) -> Iterator[int]:
        """Inspect what is not known yet, on all cores; yield how many samples are done, again and again."""
        assert self._base is not None
        done, new = 0, []
        for sample in samples:
            if self._is_known(sample):
                done += 1
            else:
                new.append(sample)
        if done:
            yield done
        written = time.monotonic()
        for chunk, texts in _inspected(self._inspector, new):
            rows = [(_key(sample), stamp(sample), text) for sample, text in zip(chunk, texts, strict=True)]
            self._base.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", rows)
            if time.monotonic() - written > _COMMIT_SECONDS:
                self._base.commit()
                written = time.monotonic()
            done += len(chunk)
            yield done
        self._base.commit()

    def _is_known(self, sample: Sample) -> bool:
        assert self._base is not None
        row = self._base.execute("SELECT stamp FROM found WHERE sample = ?", (_key(sample),)).fetchone()
        return row is not None and row[0] == stamp(sample)

    def _text(self, sample: Sample) -> str | None:
        assert self._base is not None
        row = self._base.execute("SELECT text FROM found WHERE sample = ?", (_key(sample),)).fetchone()
        return None if row is None else str(row[0])


def _key(sample: Sample) -> bytes:
    return os.fsencode(sample.where)  # bytes: names need not be UTF-8


def _opened(path: Path) -> sqlite3.Connection | None:
    """Open a journal; nothing where it cannot be written, or another process has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        base = _prepared(sqlite3.connect(path, timeout=1.0))
        base.execute("BEGIN IMMEDIATE")
        base.commit()
        return base
    except sqlite3.DatabaseError as error:
        if type(error) is sqlite3.DatabaseError:  # no database at all: cut off, or another file
            path.unlink(missing_ok=True)
            return _prepared(sqlite3.connect(path, timeout=1.0))
        logger.info("check is not kept in %s (%s)", path, error)
    except OSError as error:
        logger.info("check is not kept in %s (%s)", path.parent, error.strerror)
    return None


def _prepared(base: sqlite3.Connection) -> sqlite3.Connection:
    base.execute("CREATE TABLE IF NOT EXISTS found (sample BLOB PRIMARY KEY, stamp TEXT, text TEXT) WITHOUT ROWID")
    return base


def _inspected(inspector: Inspector, samples: list[Sample]) -> Iterator[tuple[list[Sample], list[str]]]:
    """Yield chunks of samples with what was found, as they are done."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(samples) < PROCESSES_FROM or cores == 1 or inspector.level != "full":
        # Pillow decodes without holding the interpreter's lock.
        yield from _through(ThreadPoolExecutor(4), inspector, samples, 1)
        return
    # Spawned: a fork would copy locks of other threads, and a fork server would lack what the loader's preloads.
    pool = ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_start_worker)
    began = False
    try:
        for found in _through(pool, inspector, samples, _CHUNK):
            began = True
            yield found
    except BrokenProcessPool:
        if began:
            raise SetrFastError(
                "data check: a process ended while it read pictures; smaller --data.max-pixels need less memory"
            ) from None
        # New processes import the program's main module; a script without a main guard cannot have any.
        logger.info("check runs in one process: others could not be started")
        yield from _through(ThreadPoolExecutor(4), inspector, samples, _CHUNK)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's: it ends its workers


def _through(
    pool: Executor, inspector: Inspector, samples: list[Sample], size: int
) -> Iterator[tuple[list[Sample], list[str]]]:
    """Inspect chunks of samples in a pool; only a few are under way at a time."""
    chunks = (samples[start : start + size] for start in range(0, len(samples), size))
    with pool:
        running: dict[Future[list[str]], list[Sample]] = {}
        try:
            while True:
                for chunk in islice(chunks, _UNDER_WAY - len(running)):
                    running[pool.submit(inspector.texts, chunk)] = chunk
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()
