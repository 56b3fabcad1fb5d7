"""Reading, computing and writing at the same time, in order, with few items between the stages.

Reading and writing run in threads (decoders and zlib release the interpreter), computing in the caller's: a GPU, and
Ctrl-C, belong to it. What is between two stages is bounded, so that memory does not grow with the number of items.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741  an item: a path, a number
R = TypeVar("R")  # what reading gives
W = TypeVar("W")  # what computing gives
O = TypeVar("O")  # noqa: E741  what writing gives


@dataclass(frozen=True)
class Outcome(Generic[I, O]):
    """What became of an item: what writing returned, or the first stage's error."""

    item: I
    result: O | None
    error: Exception | None


def pipelined(
    items: Iterable[I],
    read: Callable[[I], R],
    compute: Callable[[R], W],
    write: Callable[[I, W], O],
    *,
    readers: int | None = None,
    writers: int | None = None,
) -> Generator[Outcome[I, O], None, None]:
    """Yield the outcome of every item, in order.

    An exception ends its item only, whatever stage it came from. One item more than there are threads may be read, and
    as many be waiting to be written. When the caller stops early, or is interrupted, what was begun is finished and
    nothing else is started. One thread takes items one after another, so that it may read or write a stream.
    """
    readers, writers = readers or stage_threads(), writers or stage_threads()
    coming, reading, writing = iter(items), deque[tuple[I, Future[R]]](), deque[tuple[I, Future[O]]]()
    with ThreadPoolExecutor(readers, "read") as read_pool, ThreadPoolExecutor(writers, "write") as write_pool:
        try:
            while True:
                while len(reading) <= readers and (item := next(coming, _END)) is not _END:
                    reading.append((item, read_pool.submit(read, item)))  # type: ignore[arg-type]
                if not reading:
                    break
                item, pixels = reading.popleft()
                try:
                    made = compute(pixels.result())
                except Exception as error:
                    while writing:
                        yield _outcome(*writing.popleft())
                    yield Outcome(item, None, error)
                    continue
                writing.append((item, write_pool.submit(write, item, made)))
                del pixels, made  # two pictures less in memory while the next one is waited for
                while writing and (len(writing) > writers + 1 or writing[0][1].done()):
                    yield _outcome(*writing.popleft())
            while writing:
                yield _outcome(*writing.popleft())
        finally:
            read_pool.shutdown(wait=False, cancel_futures=True)
            write_pool.shutdown(wait=False, cancel_futures=True)


def stage_threads() -> int:
    """Return the threads of the reading and of the writing stage: few, the model has the processor."""
    return max(min((os.cpu_count() or 1) // 4, 8), 1)


class _End:
    """No further item."""


_END = _End()


def _outcome(item: I, future: Future[O]) -> Outcome[I, O]:
    try:
        return Outcome(item, future.result(), None)
    except Exception as error:
        return Outcome(item, None, error)
