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
    bytes_of: Callable[[I], int] = lambda item: 0,
    room: int = 0,
) -> Generator[Outcome[I, O], None, None]:
    """Yield the outcome of every item, in order.

    An exception ends its item only, whatever stage it came from. One item more than there are threads may be read, and
    as many be waiting to be written, as long as all that are under way, by ``bytes_of``, have room together: one that
    has not goes alone. When the caller stops early, or is interrupted, what was begun is finished and
    nothing else is started. One thread takes items one after another, so that it may read or write a stream.
    """
    readers, writers = readers or stage_threads(), writers or stage_threads()
    coming = ((item, bytes_of(item)) for item in items)
    following, held = next(coming, None), 0
    reading, writing = deque[_Begun[I, R]](), deque[_Begun[I, O]]()
    with ThreadPoolExecutor(readers, "read") as read_pool, ThreadPoolExecutor(writers, "write") as write_pool:

        def written() -> Outcome[I, O]:
            nonlocal held
            done = writing.popleft()
            outcome = _outcome(done)
            held -= done.bytes
            return outcome

        try:
            while following is not None or reading or writing:
                while following is not None and len(reading) <= readers:
                    item, size = following
                    if held + size > room and (reading or writing):
                        break
                    held += size
                    reading.append(_Begun(item, size, read_pool.submit(read, item)))
                    following = next(coming, None)
                if not reading:  # the next one waits for room, or there is none
                    yield written()
                    continue
                begun = reading.popleft()
                try:
                    made = compute(begun.future.result())
                except Exception as error:
                    while writing:
                        yield written()
                    held -= begun.bytes
                    yield Outcome(begun.item, None, error)
                    continue
                writing.append(_Begun(begun.item, begun.bytes, write_pool.submit(write, begun.item, made)))
                del begun, made  # two pictures less in memory while the next one is waited for
                while writing and (len(writing) > writers + 1 or writing[0].future.done()):
                    yield written()
        finally:
            read_pool.shutdown(wait=False, cancel_futures=True)
            write_pool.shutdown(wait=False, cancel_futures=True)


def stage_threads() -> int:
    """Return the threads of the reading and of the writing stage: few, the model has the processor."""
    return max(min((os.cpu_count() or 1) // 4, 8), 1)


@dataclass(frozen=True)
class _Begun(Generic[I, O]):
    """An item in a stage, and what it holds in memory until it is written."""

    item: I
    bytes: int
    future: Future[O]


def _outcome(begun: _Begun[I, O]) -> Outcome[I, O]:
    try:
        return Outcome(begun.item, begun.future.result(), None)
    except Exception as error:
        return Outcome(begun.item, None, error)
