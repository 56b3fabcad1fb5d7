"""The model and what reads and writes beside it, on the same processors one after the other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import count, groupby

import pytest
import torch

from setr_fast.engine.pipeline import pipelined, stage_threads
from setr_fast.engine.turns import Turns, bring_near, processors, turns_of

COMPUTING, BESIDE = "computing", "beside"


class Stages:
    """Stages that note when they use a processor: the beginning and the end of each use, in order."""

    def __init__(self, turns: Turns, seconds: float = 0.0) -> None:
        self.turns, self.seconds = turns, seconds
        self.noted: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    def _use(self, what: str) -> None:
        with self._lock:
            self.noted.append((what, 1))
        time.sleep(self.seconds)
        with self._lock:
            self.noted.append((what, -1))

    def read(self, item: int) -> int:
        with self.turns.beside():
            self._use(BESIDE)
        return item

    def compute(self, item: int) -> int:
        self._use(COMPUTING)
        return item

    def write(self, item: int, made: int) -> int:
        return self.read(made)

    def overlaps(self) -> int:
        """Return how often one began while the other was at it."""
        busy, found = {COMPUTING: 0, BESIDE: 0}, 0
        for what, change in self.noted:
            busy[what] += change
            found += change > 0 and min(busy.values()) > 0
        return found


@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_is_read_or_written_while_the_model_computes(threads):
    stages = Stages(Turns(), 0.001)
    limits = {"readers": threads, "writers": threads, "turns": stages.turns}
    found = list(pipelined(range(40), stages.read, stages.compute, stages.write, **limits))
    assert [outcome.result for outcome in found] == list(range(40))
    assert len(stages.noted) == 2 * 3 * 40
    assert stages.overlaps() == 0
    free = Stages(Turns(active=False), 0.001)
    assert len(list(pipelined(range(40), free.read, free.compute, free.write, turns=free.turns))) == 40
    assert free.overlaps() > 0, "where nobody takes turns"


def test_disks_are_waited_for_by_those_alone_who_wait_and_several_items_are_computed_in_a_row():
    turns, readers, number = Turns(), 4, 40
    stages = Stages(turns)
    near, computing = ([threading.Event() for _ in range(number + readers)] for _ in range(2))

    def read(item: int) -> int:
        near[item].set()
        return stages.read(item)

    def compute(item: int) -> int:
        computing[item].set()
        if item + readers < number:  # which is read from its disk now, during the model's turn
            assert near[item + readers].wait(20)
        return stages.compute(item)

    def write(item: int, made: int) -> int:
        stages.write(item, made)
        if item + 1 < number:  # what is written to a disk takes until the next one is computed
            assert computing[item + 1].wait(20)
        return made

    found = list(pipelined(range(number), read, compute, write, readers=readers, writers=readers, turns=turns))
    assert [outcome.error for outcome in found] == [None] * number
    in_a_row = [what for what, _ in groupby(what for what, _ in stages.noted)]
    assert in_a_row.count(COMPUTING) <= number / 2, "turns of several items each"


def test_the_one_who_waits_comes_before_the_one_who_comes_later():
    turns, noted = Turns(), []
    arrived, leave = threading.Event(), threading.Event()

    def beside(name: str, then: Callable[[], object] = lambda: None) -> threading.Thread:
        def work() -> None:
            with turns.beside():
                noted.append(name)
                then()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def until(what: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not what():
            assert time.monotonic() < end
            time.sleep(0.001)

    first = beside("first", lambda: (arrived.set(), leave.wait(20)))
    assert arrived.wait(20)

    def model() -> None:
        turns.take()
        noted.append("model")
        until(lambda: turns._waiting == 2)
        turns.give()
        turns.take()
        noted.append("model again")
        turns.give()

    computing = threading.Thread(target=model, daemon=True)
    computing.start()
    until(lambda: turns._wanted)
    later = [beside("later"), beside("later")]
    until(lambda: turns._waiting == 2)
    assert noted == ["first"]
    leave.set()
    for thread in (first, computing, *later):
        thread.join(20)
    assert noted == ["first", "model", "later", "later", "model again"]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_error_of_any_stage_lets_the_others_in(stage):
    turns = Turns()

    def failing(number):
        def call(*args):
            if number == stage and args[-1] % 3 == 0:
                raise ValueError
            return args[-1]

        def beside(*args):
            with turns.beside():
                return call(*args)

        return call if number == 1 else beside

    found = list(pipelined(range(20), failing(0), failing(1), failing(2), readers=3, writers=3, turns=turns))
    assert [outcome.item for outcome in found] == list(range(20))
    assert [outcome.item for outcome in found if outcome.error] == list(range(0, 20, 3))


@pytest.mark.parametrize("size", [0, 40, 200])
def test_items_that_have_no_room_go_alone(size):
    stages = Stages(Turns())
    limits = {"readers": 3, "writers": 3, "bytes_of": lambda _: size, "room": 100, "turns": stages.turns}
    found = list(pipelined(range(20), stages.read, stages.compute, stages.write, **limits))
    assert [outcome.result for outcome in found] == list(range(20))


def test_the_model_has_no_turn_while_the_caller_is_at_work_and_one_who_stops_ends_the_threads():
    before = threading.active_count()
    stages = Stages(Turns())
    found = pipelined(count(), stages.read, stages.compute, stages.write, turns=stages.turns)
    for item in range(9):
        assert next(found).item == item
        assert not stages.turns.held
    found.close()
    assert threading.active_count() == before


def test_an_interrupted_model_gives_its_turn_back():
    before = threading.active_count()
    stages = Stages(Turns())

    def compute(item: int) -> int:
        if item == 5:
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        list(pipelined(count(), stages.read, compute, stages.write, readers=3, writers=3, turns=stages.turns))
    assert threading.active_count() == before
    assert not stages.turns.held


def test_one_interrupted_while_it_waits_for_its_turn_keeps_nobody_out(monkeypatch):
    turns = Turns()
    wait_for = turns._changed.wait_for
    waiting = threading.Thread(target=lambda: turns.beside().__enter__(), daemon=True)

    def interrupted(what: Callable[[], bool]) -> bool:
        if threading.current_thread() is waiting:
            return wait_for(what, 20)
        waiting.start()
        while not turns._waiting:
            turns._changed.wait(0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr(turns._changed, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        turns.take()
    waiting.join(20)
    assert (turns.held, turns._inside, turns._waiting) == (False, 0, 0)


def test_a_model_that_is_slow_gives_way_after_each_item(monkeypatch):
    class Counted(Turns):
        ended = 0

        def give(self) -> None:
            self.ended += self.held
            super().give()

    monkeypatch.setattr("setr_fast.engine.turns._LONGEST", -1.0)
    stages = Stages(Counted(), 0.001)
    limits = {"readers": 4, "writers": 4, "turns": stages.turns}
    assert len(list(pipelined(range(40), stages.read, stages.compute, stages.write, **limits))) == 40
    assert stages.turns.ended == 40


def test_turns_are_for_a_model_on_all_processors(monkeypatch):
    assert not turns_of(torch.device("cuda")).active
    monkeypatch.setattr("setr_fast.engine.turns.processors", lambda: 16)
    for threads, active in ((16, True), (8, True), (7, False), (1, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert turns_of(torch.device("cpu")).active is active
    assert stage_threads(False) <= stage_threads(True) <= 16
    assert processors() >= 1


def test_a_file_is_brought_near_and_anything_else_left_to_its_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("setr_fast.engine.turns._PIECE", 4)
    (tmp_path / "file").write_bytes(bytes(10))
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for a writer
    for name in ("file", "pipe", "none", "."):
        bring_near(tmp_path / name)
