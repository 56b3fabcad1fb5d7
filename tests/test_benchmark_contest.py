"""What a comparison notices: wrong, stale and unwritten results never count, whatever their speed."""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import ceilings, contest, memory, model_sides, op_contest, parity, ring, rows, selection
from setr_fast import measure
from setr_fast.ops import _adopted
from setr_fast.ops._op import Backend, Case, Cost, Op

MIB = 2**20


class FakeBenchmark:
    """Stands for the fixture of pytest-benchmark."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.shown = 0

    def pedantic(self, run: Callable[..., Any], args: tuple[Any, ...], rounds: int) -> None:
        self.shown += 1


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of one MiB, known ceilings, and one attempt: what others do to this machine is no matter here."""
    monkeypatch.setattr(ring, "last_level_cache_bytes", lambda: MIB)
    known = {"copy_gigabytes_per_second": 100.0, "float32_teraflops": 1.0, "bfloat16_teraflops": 1.0}
    monkeypatch.setattr(ceilings, "ceilings", lambda: known)
    monkeypatch.setattr("benchmarks.harness.ATTEMPTS", 1)
    monkeypatch.setattr("benchmarks.disturbance.SHORTEST", 1e-3)
    monkeypatch.setattr(contest, "MOST_CALLS", 2)


def _reference(x: Tensor, factor: float) -> Tensor:
    return (x * factor).sin()


def _op(right: Callable[..., Any], *, rounds: bool = True) -> Op:
    """An op that nobody knows, with one backend."""
    backend = Backend("planted", lambda _: right)

    def cases() -> list[Case]:
        return [Case("odd", lambda draw: (draw(33, 65), 0.5), bench=True)]

    return Op("plain", "plain(Tensor x, float factor) -> Tensor", _reference, (backend,), cases, _cost, False, rounds)


def _cost(x: Tensor, factor: float) -> Cost:
    return Cost(2 * x.nbytes, 2 * x.numel())


def _compare(op: Op, *, compiled: bool = False) -> tuple[list[rows.Row], FakeBenchmark, str]:
    """Return the rows, what pytest-benchmark was shown, and why the benchmark failed."""
    kept: list[rows.Row] = []
    shown, failure = FakeBenchmark(), ""
    (case,) = op.cases()
    try:
        op_contest.compare_op(op, case, torch.float32, shown, kept.extend, 7, compiled=compiled)
    except AssertionError as error:
        failure = str(error)
    return kept, shown, failure


def test_a_right_backend_gives_a_whole_row() -> None:
    kept, shown, failure = _compare(_op(lambda x, f: torch.sin(f * x)))
    assert not failure
    assert shown.shown == 1
    reference, planted = kept
    assert (reference.side, planted.side) == ("reference", "planted")
    assert planted.parity.passed
    assert planted.parity.checked >= 4 + planted.rounds
    assert planted.chosen
    assert planted.ratio == planted.ratios["reference"]
    assert reference.ratio["median"] == 1.0
    seconds, size = planted.seconds["median"], 33 * 65
    assert planted.gigabytes_per_second == pytest.approx(8 * size / seconds / 1e9)
    assert planted.teraflops_share == pytest.approx(2 * size / seconds / 1e12)
    assert planted.not_run == {"compile": op_contest.FULL_ONLY}


def _wrong(x: Tensor, factor: float) -> Tensor:
    out = _reference(x, factor)
    out[3, 5] += 1e-3
    return out


def _only_the_first_call() -> Callable[..., Tensor]:
    calls: list[int] = []

    def run(x: Tensor, factor: float) -> Tensor:
        calls.append(1)
        return _reference(x, factor) if len(calls) == 1 else torch.zeros_like(x)

    return run


def _stale() -> Callable[..., Tensor]:
    """Computes, but hands out what the call before computed."""
    held: list[Tensor] = []

    def run(x: Tensor, factor: float) -> Tensor:
        held.append(_reference(x, factor))
        return held[max(0, len(held) - 2)].clone()

    return run


def _same_memory() -> Callable[..., Tensor]:
    """Right, but each result overwrites the one before."""
    buffer = torch.empty(33, 65)

    def run(x: Tensor, factor: float) -> Tensor:
        return buffer.copy_(_reference(x, factor))

    return run


def _leaves_gaps(x: Tensor, factor: float) -> Tensor:
    out = torch.empty_like(x)
    out[1:] = _reference(x[1:], factor)
    return out


def _rounds_coarsely(x: Tensor, factor: float) -> Tensor:
    return _reference(x, factor).half().float()


def _transposed(x: Tensor, factor: float) -> Tensor:
    return _reference(x, factor).T


PLANTED = [
    pytest.param(lambda: _wrong, "is off by", id="one wrong value"),
    pytest.param(_only_the_first_call, "is off by", id="right on the first call only"),
    pytest.param(_stale, "is off by", id="stale"),
    pytest.param(_same_memory, "memory of the call before", id="one buffer for all calls"),
    pytest.param(lambda: _leaves_gaps, "is off by nan", id="a row is never written"),
    pytest.param(lambda: _rounds_coarsely, "is off by", id="half precision inside"),
    pytest.param(lambda: _transposed, "is [65, 33]", id="another shape"),
]


@pytest.mark.parametrize(("plant", "why"), PLANTED)
def test_a_wrong_backend_fails_and_stays_out_of_the_tables(plant: Any, why: str, tmp_path: Path) -> None:
    kept, shown, failure = _compare(_op(plant()))
    assert "planted" in failure
    assert why in failure
    assert shown.shown == 0
    facts = {"dirty": False, "commit": "abc", "disturbed": False, "machine": "m"}
    for row in kept:
        rows.append(tmp_path / "rows.jsonl", rows.fields_of(row) | facts)
    believed, refused = rows.believed(tmp_path)
    assert [row["side"] for row in believed] == ["reference"]
    assert len(refused) == 1
    assert "parity failed" in refused[0]


def test_ops_of_whole_numbers_agree_to_the_bit() -> None:
    exact = _op(lambda x, f: _reference(x, f), rounds=False)
    near = _op(lambda x, f: _reference(x, f) * (1 + 1e-6), rounds=False)
    assert not _compare(exact)[2]
    assert "may be by 0" in _compare(near)[2]


@pytest.mark.parametrize(
    ("got", "exact", "factor", "passed"),
    [
        ([400_005, 1_000_000], [400_000, 1_000_000], 2.0, True),
        ([400_020, 1_000_000], [400_000, 1_000_000], 2.0, False),
        ([400_001, 1_000_000], [400_000, 1_000_000], None, False),
        ([4, 5, 6], [4, 5, 7], 2.0, False),
    ],
)
def test_rounding_may_decide_a_few_pixels_of_a_count(
    got: list[int], exact: list[int], factor: float | None, passed: bool
) -> None:
    """Not of an op that rounds nothing, and no class of a map."""
    own, ours, truth = parity.Ledger(1e-7), parity.Ledger(1e-7), [torch.tensor(exact)]
    own.add(0, truth, truth)
    ours.add(0, [torch.tensor(got)], truth)
    assert ours.parity(own, [truth], factor).passed is passed


def test_a_backend_that_raises_fails_and_one_that_refuses_is_noted() -> None:
    def broken(x: Tensor, factor: float) -> Tensor:
        raise RuntimeError("no such\nkernel")

    kept, _, failure = _compare(_op(broken))
    assert "planted: raised no such" in failure
    assert kept[0].not_run["planted"] == "no such"
    refusing = _op(_reference)
    refusing.backends = (Backend("planted", lambda _: _reference, "cuda", accepts=lambda *_: ["not on Sundays"]),)
    kept, _, failure = _compare(refusing)
    assert not failure
    assert kept[0].not_run["planted"] == "takes tensors on cuda, got cpu; not on Sundays"
    assert kept[0].chosen


def test_a_foreign_side_that_is_wrong_is_kept_out_but_fails_nothing() -> None:
    sides = {
        "reference": contest.Side(_reference, torch.float32, "reference", 1.0),
        "compile": contest.Side(_wrong, torch.float32, "reference", ours=False),
    }
    held = contest.Contest(sides, lambda i: (torch.randn(33, 65), 0.5), lambda a: _reference(a[0].double(), a[1]))
    outcome = held.run(rounds=3)
    assert not outcome.failures
    assert not outcome.parity["compile"].passed
    assert outcome.parity["reference"].passed


def test_arguments_lie_beyond_the_cache_and_differ_from_call_to_call() -> None:
    made = ring.Ring(lambda index: (torch.full((16, 1024), float(index)), 3))
    first, second = made.next(0), made.next(0)
    assert made.copies * ring.VALUES * first[0].nbytes >= MIB
    assert first[0].data_ptr() != second[0].data_ptr()
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], made.next(1)[0])
    half = ring.copied(first, torch.bfloat16)
    assert half[0].dtype is torch.bfloat16
    assert half[1] == 3


def test_memory_handed_out_for_checks_is_poisoned() -> None:
    with parity.poisoned_allocations():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_errors_see_nan_and_equal_infinities() -> None:
    inf, nan = float("inf"), float("nan")
    assert measure.error_of(torch.tensor([1.0, inf]), torch.tensor([1.5, inf], dtype=torch.float64)) == 0.5
    assert measure.error_of(torch.tensor([inf]), torch.tensor([1.0], dtype=torch.float64)) == inf
    missing = measure.error_of(torch.tensor([1.0, nan]), torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert missing != missing
    assert measure.error_of(torch.tensor([nan]), torch.tensor([nan], dtype=torch.float64)) == 0
    assert measure.error_of(torch.tensor([3], dtype=torch.uint8), torch.tensor([250], dtype=torch.uint8)) == 247


def test_peak_memory_is_that_of_the_call() -> None:
    def run() -> Tensor:
        return torch.ones(8 * MIB).sum()

    run()
    peak = memory.peak_extra_bytes(run)
    if peak is None:
        pytest.skip("this system does not tell the peak")
    assert 31 * MIB < peak < 36 * MIB


def test_default_selection_is_spread_over_the_cases() -> None:
    assert selection.spread([1, 2, 3, 4, 5, 6, 7], 3) == [1, 4, 7]
    assert selection.spread([1, 2, 3, 4, 5, 6, 7]) == [1, 7]
    assert selection.spread([1, 2]) == [1, 2]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, ["plain"]),
        ({"markexpr": "full"}, ["plain", "large"]),  # pytest itself then drops what has no such mark
        ({"keyword": "large"}, ["plain", "large", "peer", "large peer"]),
        ({"markexpr": "peers"}, ["plain", "peer"]),
        ({"markexpr": "peers and full"}, ["plain", "large", "peer", "large peer"]),
    ],
)
def test_the_default_selection_leaves_out_what_is_marked(options: dict[str, str], kept: list[str]) -> None:
    items = [_Item("plain"), _Item("large", "full"), _Item("peer", "peers"), _Item("large peer", "peers", "full")]
    hook = types.SimpleNamespace(pytest_deselected=lambda items: None)
    config = types.SimpleNamespace(getoption=lambda name: options.get(name, ""), args=["benchmarks/"], hook=hook)
    selection.select(config, items)  # type: ignore[arg-type]
    assert [item.name for item in items] == kept
    assert [item.name for item in items if "full" in item.marks] == [name for name in kept if name != "peer"]
    assert not [item for item in items if item.name == "peer" and "full" in item.marks]


class _Item:
    """Stands for a test."""

    def __init__(self, name: str, *marks: str) -> None:
        self.name, self.marks = name, list(marks)

    def get_closest_marker(self, mark: str) -> bool:
        return mark in self.marks

    def add_marker(self, mark: str) -> None:
        self.marks.append(mark)


def test_a_side_with_a_clock_of_its_own_is_timed_by_it() -> None:
    """What surrounds the work, such as passing tensors to another process, is not charged."""

    def slow(x: Tensor, factor: float) -> Tensor:
        time.sleep(0.002)
        return _reference(x, factor)

    ticks = iter([0.0, 0.5] * 100)  # asked before a sample, to forget, and after it
    sides = {
        "reference": contest.Side(_reference, torch.float32, "reference", 1.0),
        "far": contest.Side(slow, torch.float32, "reference", clock=lambda: next(ticks)),
    }
    held = contest.Contest(sides, lambda i: (torch.randn(33, 65), 0.5), lambda a: _reference(a[0].double(), a[1]))
    outcome = held.run(rounds=3, memory=False)
    assert not outcome.failures
    assert set(outcome.seconds["far"]) == {0.5}
    assert max(outcome.seconds["reference"]) < 0.5


def test_kernels_that_no_card_has_run_are_a_side_of_their_own() -> None:
    def run() -> bool:
        return _adopted.takes_untried()

    sides, not_run = model_sides.with_kernels(run, graph=None)
    assert [name for name, side in sides.items() if side.run()] == [model_sides.KERNELS]
    assert not_run == {f"{model_sides.KERNELS} graph": "the step of an optimiser is not captured"}
    assert not run(), "only while that side runs"


def test_a_graph_that_cannot_be_captured_is_a_reason_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def graph() -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand a page more")

    monkeypatch.setattr(model_sides, "DEVICE", "cuda")
    for make, name in ((model_sides.with_kernels, f"{model_sides.KERNELS} graph"), (_ladder, "graph")):
        sides, not_run = make(lambda: None, graph=graph)
        assert name not in sides
        assert not_run[name] == "operation not permitted when stream is capturing"


def _ladder(run: Callable[..., Any], *, graph: Any) -> Any:
    return model_sides.ladder(run, [], full=False, graph=graph)
