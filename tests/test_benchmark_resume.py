"""A run in parts: what is held, how long the rest takes, what a killed run leaves."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory, report, resume, rows

TEST = "benchmarks/test_ops.py::test_op[layer_norm-odd-float32]"
FACTS = {"machine": "m", "threads": 2, "torch": "2", "commit": "abc", "dirty": False}


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of which we know the name, and a commit after which code changed."""
    monkeypatch.setattr(resume, "machine", lambda: FACTS)
    monkeypatch.setattr(resume, "same_code", lambda commit: commit != "old")


def _row(**changes: Any) -> dict[str, Any]:
    row = {"kind": "op", "side": "native", "ratios": {}, "test": TEST, "took_seconds": 30.0, "seed": 1, "quick": False}
    return FACTS | {"disturbed": False, "others": 0.3, "steal": 0.0, "parity": {"passed": True}} | row | changes


def _plan(
    folder: Path, *found: dict[str, Any], quick: bool = False, goes_on: bool = True, **options: Any
) -> resume.Plan:
    path = folder / "rows.jsonl"
    for row in found:
        rows.append(path, row)
    return resume.Plan([path], goes_on=goes_on, minutes=options.get("minutes"), quick=quick)


WRONG = {"passed": False, "why": "off by 3"}


@pytest.mark.parametrize(
    ("changes", "held", "quickly"),
    [
        ({}, True, True),
        ({"disturbed": True}, False, True),
        ({"quick": True}, False, True),
        ({"commit": "old"}, False, False),
        ({"commit": ""}, False, False),
        ({"dirty": True}, False, False),
        ({"parity": WRONG}, False, False),
        ({"parity": WRONG, "side": "compile"}, True, True),
        ({"machine": "n"}, False, False),
        ({"threads": 1}, False, False),
        ({"torch": "3"}, False, False),
    ],
)
def test_what_counts_as_held(changes: dict[str, Any], held: bool, quickly: bool, tmp_path: Path) -> None:
    """With --quick it is enough that a comparison was right; else its figures must count too."""
    common = {name: value for name, value in changes.items() if name not in ("parity", "side")}
    assert (TEST in _plan(tmp_path, _row(side="reference", **common), _row(**changes)).held) is held
    assert (TEST in _plan(tmp_path, quick=True).held) is quickly
    assert not _plan(tmp_path, goes_on=False).held


def test_a_later_run_makes_good_what_was_wrong(tmp_path: Path) -> None:
    assert TEST in _plan(tmp_path, _row(parity=WRONG), _row(took_seconds=31.0)).held


def test_what_is_held_is_dropped_and_the_rest_has_its_time(tmp_path: Path) -> None:
    other = "benchmarks/test_models.py::test_training_step[setr_pup_vit_l16-768px]"
    plan = _plan(
        tmp_path, _row(), _row(test="measured", took_seconds=600.0, commit="old"), _row(test="measured", quick=True)
    )
    items = [types.SimpleNamespace(nodeid=name) for name in (TEST, other, "measured")]
    gone: list[Any] = []
    config = types.SimpleNamespace(hook=types.SimpleNamespace(pytest_deselected=lambda items: gone.extend(items)))
    plan.pytest_collection_modifyitems(config, items)  # type: ignore[arg-type]
    assert [item.nodeid for item in gone] == [TEST]
    minutes = round((600 + resume.guess(other)) / 60)
    said = plan.pytest_report_collectionfinish(items)  # type: ignore[arg-type]
    assert f"2 comparisons, about {minutes} min on an idle machine (1 of the times are guessed" in said
    assert said.endswith("1 more are held by results of this code")
    assert resume._duration(3 * 3600 + 20 * 60) == "3 h 20 min"


def test_nothing_begins_that_would_end_too_late(tmp_path: Path) -> None:
    plan = _plan(tmp_path, _row(took_seconds=30.0), _row(test="long", took_seconds=90.0), minutes=1.0)
    plan.pytest_runtest_setup(types.SimpleNamespace(nodeid=TEST))  # type: ignore[arg-type]
    with pytest.raises(pytest.skip.Exception, match="--continue goes on"):
        plan.pytest_runtest_setup(types.SimpleNamespace(nodeid="long"))  # type: ignore[arg-type]


def test_a_line_that_was_cut_off_is_named_and_hurts_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    rows.append(path, _row())
    with path.open("a") as file:
        file.write(json.dumps(_row())[:40])
    rows.append(path, _row(test="next"))
    assert [row.get("test") for _, row in rows.read(path)] == [TEST, None, "next"]
    assert len(report.read_rows(tmp_path)) == 2
    assert "rows.jsonl:2: refused, it is no row: cut off or edited" in capsys.readouterr().err
    assert not report.left_out(tmp_path, [])
    assert _plan(tmp_path).held == {TEST, "next"}


def test_quick_rows_stay_out_of_every_table() -> None:
    assert rows.refusal(_row(quick=True)) == "measured with --quick"


def test_what_does_not_fit_into_memory_is_refused_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2097152 kB\n")
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: False)
    assert memory.lacking(3 * 2**30) == "needs about 3 GiB of memory, 2 are free"
    assert memory.lacking(2**30) == ""
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "absent")
    assert memory.lacking(2**60) == "", "where the system does not tell, it is tried"
