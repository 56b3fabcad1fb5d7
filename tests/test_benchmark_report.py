"""The report: which rows it takes, which it refuses, what it says of a row that lost."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, report, shown
from benchmarks.rows import Parity, Row
from benchmarks.summary import summary


def _spread(median: float) -> dict[str, float]:
    return {"median": median, "p20": median * 0.9, "p80": median * 1.1}


def _row(**changes: Any) -> dict[str, Any]:
    """Return a row as it stands in a file: the used side of one comparison."""
    ratios = {"reference": _spread(3.0), "compile": _spread(1.5)}
    row = Row(
        kind="op",
        name="x",
        case="c",
        direction="forward",
        dtype="float32",
        side="native",
        baseline="reference",
        seconds=_spread(1.0),
        baseline_seconds=_spread(3.0),
        ratio=_spread(3.0),
        ratios=ratios,
        rounds=5,
        parity=Parity(True, 0.0, 1.0, 5),
        chosen=True,
        bytes=1000,
        flops=2000,
        gigabytes_per_second=1.0,
        teraflops=0.5,
        peak_extra_bytes=2**20,
    )
    circumstances = {
        "machine": "m",
        "isa": ["avx2"],
        "threads": 2,
        "torch": "2",
        "versions": {},
        "commit": "abc",
        "dirty": False,
        "ceilings": {"copy_gigabytes_per_second": 10.0, "float32_teraflops": 1.0},
        "others": 0.0,
        "steal": 0.0,
        "disturbed": False,
    }
    return asdict(row) | circumstances | changes


def _write(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dirty": True}, "uncommitted changes"),
        ({"commit": ""}, "no known commit"),
        ({"disturbed": True, "others": 0.3}, "others took 30% of the machine"),
        ({"parity": asdict(Parity(False, 2.0, 1.0, 5, "error 2 above 1"))}, "parity failed: error 2 above 1"),
    ],
)
def test_what_cannot_be_believed_is_refused(
    changes: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "1.jsonl", _row(), _row(name="bad", **changes))
    rows = report.read_rows(tmp_path)
    assert [row["name"] for row in rows] == ["x"]
    error = capsys.readouterr().err
    assert "1.jsonl:2: refused" in error
    assert why in error


def test_the_newest_comparison_counts_with_all_its_sides(tmp_path: Path) -> None:
    _write(tmp_path / "1.jsonl", _row(), _row(side="gone", chosen=False))
    newer = {"reference": _spread(7.0), "compile": _spread(2.0)}
    _write(tmp_path / "2.jsonl", _row(ratio=_spread(7.0), ratios=newer))
    rows = report.newest(report.read_rows(tmp_path))
    assert [row["side"] for row in rows] == ["native"]
    assert "**m**\n\n| op |" in summary(rows)
    assert "| `x` float32 | c | 7 (6.3..7.7) | 2 (1.8..2.2) (compile) |  |  |" in summary(rows)


def test_rows_of_an_older_make_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = {"kind": "op", "op": "y", "backend": "triton", "ratio": _spread(2.0), "machine": "m", "dirty": False}
    _write(tmp_path / "1.jsonl", older, {"kind": "trained", "run": "r", "dirty": False, "commit": "abc"})
    assert [row["kind"] for row in report.read_rows(tmp_path)] == ["trained"]
    assert "1.jsonl:1: refused, of an older make" in capsys.readouterr().err


def test_what_was_measured_last_and_is_not_shown_is_named(tmp_path: Path) -> None:
    wrong = Parity(False, 1.0, 0.1, 5, "1 against 0.1")
    _write(tmp_path / "1.jsonl", _row(), _row(side="compile", parity=asdict(wrong)))
    _write(tmp_path / "2.jsonl", _row(side="compile"), _row(name="y", disturbed=True, others=0.4))
    _write(tmp_path / "3.jsonl", _row(parity=asdict(wrong)))
    rows = report.newest(report.read_rows(tmp_path))
    missing = report.left_out(tmp_path, rows)
    assert [(row["name"], row["side"]) for row, _ in missing] == [("x", "native"), ("y", "native")]
    text = report.report(rows, missing)
    assert "- `x` c, forward, float32, native: parity failed: 1 against 0.1" in text
    assert "- `y` c, forward, float32, native: measured while others took 40%" in text


def test_every_format_of_a_checkpoint_has_its_line(tmp_path: Path) -> None:
    facts = {"kind": "checkpoint", "machine": "m", "commit": "abc", "dirty": False}
    forms = {"pth": 1.1, "npz": 1.4}
    loads = [facts | {"form": f, "load_over_read": _spread(x), "peak_over_size": 1.03} for f, x in forms.items()]
    _write(tmp_path / "1.jsonl", _row(), *loads)
    text = report.report(report.newest(report.read_rows(tmp_path)))
    assert "| pth | 1.1 (0.99..1.2) | 1.03 |\n| npz | 1.4 (1.3..1.5) | 1.03 |" in text


def test_of_an_op_the_readme_shows_the_case_that_takes_the_reference_longest(tmp_path: Path) -> None:
    slow = _row(case="slow", baseline_seconds=_spread(9.0))
    alone = _row(case="other", direction="backward", ratios={"reference": _spread(5.0)})
    _write(tmp_path / "1.jsonl", _row(case="quick"), slow, alone)
    rows = report.newest(report.read_rows(tmp_path))
    line = "| `x` float32 | slow; backward other | 3 (2.7..3.3) | 1.5 (1.4..1.7) (compile) | 5 (4.5..5.5) |  |"
    assert line in summary(rows)
    assert "quick" not in summary(rows)
    assert "quick" in report.report(rows)


def test_a_network_has_one_line_whatever_was_measured_of_it(tmp_path: Path) -> None:
    network = {"kind": "model", "name": "setr_pup_vit_t16", "direction": "inference"}
    reference = {"side": "reference", "chosen": False, "peak_extra_bytes": 3 * 2**20}
    step = network | {"direction": "training step", "case": "256px, 150 classes, batch 2"}
    inference = network | {"case": "256px, 150 classes, batch 1"}
    slower = inference | {"dtype": "bfloat16", "chosen": False}
    beside = inference | {"kind": "peer", "case": "256px, 150 classes, batch 1, beside PaddleSeg"}
    rows = [_row(**inference), _row(**inference | reference), _row(**step, ratios={"reference": _spread(6.0)})]
    part = network | {"name": "pup_decoder", "ratios": {"eager": _spread(2.0)}}
    _write(
        tmp_path / "1.jsonl", *rows, _row(**slower), _row(**beside, ratios={"PaddleSeg": _spread(5.0)}), _row(**part)
    )
    text = summary(report.newest(report.read_rows(tmp_path)))
    cells = "3 (2.7..3.3) | 1.5 (1.4..1.7) | 1 / 3 | 6 (5.4..6.6) | 5 (4.5..5.5)"
    assert f"| `setr_pup_vit_t16` float32 | 256 | {cells} |" in text
    assert "| training step, x reference | inference, x PaddleSeg |" in text
    assert text.count("`setr_pup_vit_t16`") == 1
    assert "| `pup_decoder` float32 | c |  | 2 (1.8..2.2) (eager) |  |  |" in text


def test_other_designs_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    peer = _row(kind="other design", name="EoMT and ours", side="ours", ratios={"EoMT": _spread(2.0)})
    _write(tmp_path / "1.jsonl", _row(), peer)
    rows = report.newest(report.read_rows(tmp_path))
    assert "EoMT" not in summary(rows)
    _, _, table = report.report(rows).partition("no parity: different models")
    assert "| `EoMT and ours` c, forward, float32 | ours (used) |  | 2 (1.8..2.2) (EoMT) |" in table


def test_a_used_side_that_is_not_the_fastest_is_called_lost(tmp_path: Path) -> None:
    won = _row()
    lost = _row(name="slow", ratios={"reference": _spread(3.0), "library": _spread(0.8)})
    _write(tmp_path / "1.jsonl", won, lost)
    text = report.report(report.newest(report.read_rows(tmp_path)))
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert "**Lost** 0.8" in lines["slow"]
    assert "Lost" not in lines["x"]
    assert "1 (10%)" not in lines["x"]  # shares are shown only where the run measured its ceilings into the row
    assert "1.0 |" in lines["x"]  # MiB


def test_what_could_not_run_is_told_with_its_reason(tmp_path: Path) -> None:
    _write(tmp_path / "1.jsonl", _row(not_run={"xformers": "needs a GPU"}))
    assert "- xformers: needs a GPU" in report.report(report.newest(report.read_rows(tmp_path)))


def test_plots_are_drawn_where_there_are_rows_for_them(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install -e .[report]")
    from benchmarks import plots

    step = {"kind": "model", "name": "vit", "direction": "inference", "agreement": 1.0}
    reference = _row(side="reference", chosen=False, peak_extra_bytes=2**24, ratios={"native": _spread(0.33)})
    _write(tmp_path / "1.jsonl", _row(), reference, _row(**step), _row(**step, side="bf16"))
    rows = report.newest(report.read_rows(tmp_path))
    plots.draw_all(rows, tmp_path / "plots")
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == [
        "m-ladder.svg",
        "m-memory.svg",
        "m-roofline.svg",
        "m-speed.svg",
    ]
    again = tmp_path / "again"
    plots.draw_all(rows, again)
    assert (again / "m-speed.svg").read_bytes() == (tmp_path / "plots" / "m-speed.svg").read_bytes()
    assert all(f"benchmarks/{file}" in report.report(rows) for _, file in plots.files(rows))


def test_readme_and_report_hold_exactly_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    rows = report.newest(report.read_rows(machine.RESULTS))
    readme = (machine.ROOT / "README.md").read_text()
    inside = readme.partition(report.BEGIN)[2].partition(report.END)[0].strip()
    assert inside == summary(rows).strip(), "run python -m benchmarks.report"
    missing = report.left_out(machine.RESULTS, rows)
    assert report.REPORT.read_text() == report.report(rows, missing), "run python -m benchmarks.report"


def test_without_a_row_that_counts_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "absent")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "REPORT", tmp_path / "report.md")
    assert report.main() == 3
    (tmp_path / "absent").mkdir()
    _write(tmp_path / "absent" / "1.jsonl", _row(dirty=True))
    assert report.main() == 3
    assert not (tmp_path / "report.md").exists()
    assert "must hold rows that count, got none; nothing was written" in capsys.readouterr().err


def test_large_ratios_are_whole_numbers() -> None:
    assert report.spread({"median": 299.6, "p20": 99.4, "p80": 1234.5}) == "300 (99..1234)"
    assert report.spread({"median": 1.234, "p20": 0.8765, "p80": 12.3}) == "1.2 (0.88..12)"


def test_a_run_shows_ratios_of_one_run_and_what_to_mistrust() -> None:
    reference = _row(side="reference", chosen=False, ratio=_spread(1.0), ratios={"native": _spread(1 / 3)})
    text = "\n".join(shown.lines([[reference, _row()]]))
    assert "x c, forward, float32  native  3 (2.7..3.3)  1.5 (1.4..1.7) compile  10 right" in text
    assert "[disturbed]" not in text
    wrong = _row(side="triton", chosen=False, parity=asdict(Parity(False, 2.0, 1.0, 5, "output 0 is off by 2")))
    bad = _row(name="y", disturbed=True, others=0.3, not_run={"cudnn": "needs a card"}, dirty=True)
    text = "\n".join(shown.lines([[bad, wrong], [{"kind": "checkpoint", "form": "pth", "load_over_read": _spread(2)}]]))
    assert "y c, forward, float32 [disturbed]" in text
    assert "triton WRONG: output 0 is off by 2" in text
    assert "others took up to 30% of the machine" in text
    assert "uncommitted changes" in text
    assert "Not run here: cudnn (needs a card)" in text
    assert "loading ViT-L from pth: 2 (1.8..2.2) times as long as reading the file" in text
