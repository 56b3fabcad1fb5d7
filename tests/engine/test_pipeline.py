"""Reading, computing and writing at the same time."""

from __future__ import annotations

import threading
import time
from itertools import count

import pytest

from setr_fast.engine.pipeline import pipelined


def _nothing(*args):
    return args[-1]


def test_outcomes_come_in_order_whatever_takes_longest():
    def write(item: int, made: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return 10 * made

    found = list(pipelined(range(20), _nothing, lambda x: x + 1, write, readers=3, writers=3))
    assert [outcome.item for outcome in found] == list(range(20))
    assert [outcome.result for outcome in found] == [10 * (x + 1) for x in range(20)]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_error_of_any_stage_ends_its_item_only(stage):
    def failing(number):
        def call(*args):
            if number == stage and args[-1] in (0, 3, 9):
                raise ValueError(f"not {args[-1]}")
            return args[-1]

        return call

    found = list(pipelined(range(10), failing(0), failing(1), failing(2)))
    assert [outcome.item for outcome in found] == list(range(10))
    assert [str(outcome.error) for outcome in found if outcome.error] == ["not 0", "not 3", "not 9"]
    assert [outcome.result for outcome in found if not outcome.error] == [1, 2, 4, 5, 6, 7, 8]


def test_few_items_are_between_the_stages():
    begun, ended, most = [], [], 0

    def read(item: int) -> int:
        begun.append(item)
        return item

    def write(item: int, made: int) -> int:
        nonlocal most
        most = max(most, len(begun) - len(ended))
        time.sleep(0.001)
        ended.append(item)
        return made

    assert len(list(pipelined(range(200), read, _nothing, write, readers=2, writers=1))) == 200
    assert most <= (2 + 1) + 1 + (1 + 2), "read ahead, being computed, waiting to be written"


def test_stages_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=20)
    passed = []

    def meet(*args):
        if len(passed) < 3:  # the third picture is read while the second is computed and the first is written
            meeting.wait()
        passed.append(args[-1])
        return args[-1]

    def late(number):
        return lambda *args: meet(*args) if args[-1] == number else args[-1]

    list(pipelined(range(3), late(2), late(1), late(0), readers=1, writers=1))
    assert len(passed) == 3


def test_a_caller_that_stops_ends_the_threads():
    before = threading.active_count()
    stages = pipelined(count(), _nothing, _nothing, _nothing)
    assert next(stages).result == 0
    stages.close()
    assert threading.active_count() == before


def test_one_reader_takes_from_a_stream_in_order():
    stream = iter(range(50))
    found = list(pipelined(range(50), lambda _: next(stream), _nothing, _nothing, readers=1))
    assert [outcome.result for outcome in found] == list(range(50))


def test_items_under_way_have_room_together_or_go_alone():
    begun, ended, seen = [], [], []
    sizes = [30, 30, 30, 300, 20, 20, 20, 100, 1, 1, 1, 1, 1, 1]

    def read(item: int) -> int:
        begun.append(item)
        seen.append([one for one in begun if one not in ended])
        time.sleep(0.001 if item % 2 else 0)
        return item

    def write(item: int, made: int) -> int:
        time.sleep(0.002)
        return made

    found = pipelined(range(14), read, _nothing, write, readers=4, writers=4, bytes_of=lambda i: sizes[i], room=100)
    for outcome in found:
        ended.append(outcome.item)
    assert ended == list(range(14))
    for under_way in seen:
        assert len(under_way) == 1 or sum(sizes[item] for item in under_way) <= 100, under_way
    assert max(map(len, seen)) > 4


def test_an_item_that_fails_gives_its_room_back():
    def compute(item: int) -> int:
        if item % 2:
            raise ValueError
        return item

    found = list(pipelined(range(9), _nothing, compute, _nothing, bytes_of=lambda _: 60, room=100))
    assert [outcome.item for outcome in found if outcome.error] == [1, 3, 5, 7]
    assert len(found) == 9
