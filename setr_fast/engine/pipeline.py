"""Reading, computing and writing at the same time, in order, with few items between the stages.

Reading and writing run in threads (decoders and zlib release the interpreter), computing in the caller's: a GPU, and
Ctrl-C, belong to it. What is between two stages is bounded, so that memory does not grow with the number of items.
Where all of them want the same processors they take turns: several items are computed, then as many others read and
written at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from setr_fast.engine.turns import Turns, processors

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
    turns: Turns | None = None,
) -> Generator[Outcome[I, O], None, None]:
    """Yield the outcome of every item, in order.

    An exception ends its item only, whatever stage it came from. One item more than there are threads may be read, and
    as many be waiting to be written, as long as all that are under way, by ``bytes_of``, have room together: one that
    has not goes alone. When the caller stops early, or is interrupted, what was begun is finished and
    nothing else is started. One thread takes items one after another, so that it may read or write a stream.

    ``turns``: ``compute`` has one until nothing more is read, what is written has no place, or it had it for long; it
    never has one while the caller does something. What in ``read`` and ``write`` needs a processor is to be done
    ``beside`` it.
    """
    turns = turns or Turns(active=False)
    readers, writers = readers or stage_threads(turns.active), writers or stage_threads(turns.active)
    held = 0
    reading, writing = deque[_Begun[I, R]](), deque[_Begun[I, O]]()
    with (
        ThreadPoolExecutor(readers, "weigh") as weigh_pool,
        ThreadPoolExecutor(readers, "read") as read_pool,
        ThreadPoolExecutor(writers, "write") as write_pool,
    ):

        def written() -> Outcome[I, O]:
            nonlocal held
            done = writing.popleft()
            outcome = _outcome(done)
            held -= done.bytes
            return outcome

        try:
            coming = _ahead(items, lambda item: weigh_pool.submit(bytes_of, item), readers)
            following = next(coming, None)
            while following is not None or reading or writing:
                if not (reading and reading[0].future.done()) or len(writing) > writers + 1 or turns.overdue():
                    turns.give()
                while writing and not turns.held and (len(writing) > writers + 1 or writing[0].future.done()):
                    yield written()
                while following is not None and len(reading) <= readers:
                    item, weight = following
                    if reading and not weight.done():  # a slow disk
                        break
                    size = weight.result()
                    if held + size > room and (reading or writing):
                        break
                    held += size
                    reading.append(_Begun(item, size, read_pool.submit(read, item)))
                    following = next(coming, None)
                if not reading:  # the next one waits for room, or there is none
                    if writing:
                        yield written()
                    continue
                begun = reading.popleft()
                try:
                    given = begun.future.result()
                    turns.take()
                    made = compute(given)
                except Exception as error:
                    turns.give()
                    while writing:
                        yield written()
                    held -= begun.bytes
                    yield Outcome(begun.item, None, error)
                    continue
                writing.append(_Begun(begun.item, begun.bytes, write_pool.submit(write, begun.item, made)))
                del begun, given, made  # two pictures less in memory while the next one is waited for
        finally:
            turns.give()
            for pool in (weigh_pool, read_pool, write_pool):
                pool.shutdown(wait=False, cancel_futures=True)


def stage_threads(in_turns: bool) -> int:
    """Return the threads of the reading and of the writing stage.

    Few where the model computes at the same time. In turns, as many as keep the processors busy, and at least four: for
    some milliseconds the model's own threads, which wait for its next layer, are busy too.
    """
    return min(max(processors(), 4), 16) if in_turns else max(min(processors() // 4, 8), 1)


def _ahead(items: Iterable[I], weigh: Callable[[I], Future[int]], count: int) -> Iterator[tuple[I, Future[int]]]:
    """Yield items and what they weigh, which is asked for as many items earlier: it waits for a disk."""
    asked = deque[tuple[I, Future[int]]]()
    for item in items:
        asked.append((item, weigh(item)))
        if len(asked) > count:
            yield asked.popleft()
    yield from asked


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
