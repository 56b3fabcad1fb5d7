"""The measuring tools themselves: interleaving, ratios, what the report takes and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check, disturbance, harness, record_run, rows
from setr_fast import measure


def test_both_sides_run_in_every_round_and_in_turning_order() -> None:
    order: list[str] = []
    times = harness.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a"]  # one warm-up each, then four rounds
    assert len(times["a"]) == len(times["b"]) == 4


def test_ratio_is_taken_round_by_round() -> None:
    """A round that is ten times slower on both sides leaves the ratio alone."""
    assert measure.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == {"median": 2.0, "p20": 2.0, "p80": 2.0}


def test_a_slower_side_is_seen() -> None:
    times = harness.interleaved({"slow": lambda: time.sleep(0.004), "quick": lambda: time.sleep(0.001)}, rounds=5)
    assert measure.ratio(times["slow"], times["quick"])["median"] > 1.5


def _clock(busy: float, own: float, steal: float = 0.0, total: float = 10.0) -> disturbance.Clock:
    return disturbance.Clock(busy, steal, total, own)


def test_what_others_take_is_what_is_busy_beyond_this_process() -> None:
    start = _clock(0, 0, total=0)
    found = disturbance.between(start, _clock(busy=9, own=6, steal=0.5))
    assert found == disturbance.Disturbance(others=0.3, steal=0.05)
    assert found.heavy
    assert not disturbance.between(start, _clock(busy=6.2, own=6)).heavy  # type: ignore[union-attr]
    assert disturbance.between(start, _clock(1, 0, total=0.1)) is None  # too short to say
    assert disturbance.between(None, start) is None


def test_a_busy_neighbour_is_noticed() -> None:
    if disturbance.read_clock() is None:
        pytest.skip("this system does not tell how busy its processors are")
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        before = disturbance.read_clock()
        time.sleep(0.6)
        found = disturbance.between(before, disturbance.read_clock())
    finally:
        neighbour.kill()
        neighbour.wait()
    assert found is not None
    assert found.others > 0.5 / (os.cpu_count() or 1)


def test_a_process_of_ours_is_no_neighbour() -> None:
    """PaddleSeg's side runs in a process of its own: its time is part of what is timed."""
    if disturbance.read_clock() is None:
        pytest.skip("this system does not tell how busy its processors are")
    helper = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        disturbance.companions.add(helper.pid)
        before = disturbance.read_clock()
        assert before is not None
        began, after = time.perf_counter(), before
        while after is not None and after.own - before.own < 0.03 and time.perf_counter() - began < 20:
            time.sleep(0.1)  # its share comes late where the machine is busy
            after = disturbance.read_clock()
    finally:
        disturbance.companions.discard(helper.pid)
        helper.kill()
        helper.wait()
    assert after is not None
    assert after.own - before.own > 0.02


def test_disturbed_measurements_are_repeated_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.4, 0.2, 0.3])
    monkeypatch.setattr(harness, "between", lambda *_: disturbance.Disturbance(next(shares), 0.0))
    harness.worst_disturbance()
    calls: list[int] = []
    harness.interleaved({"a": lambda: calls.append(1)}, rounds=3)
    assert len(calls) == 1 + 3 * harness.ATTEMPTS
    assert harness.worst_disturbance() == {"others": 0.2, "steal": 0.0, "disturbed": True}
    assert harness.worst_disturbance()["disturbed"] is False


def test_repeats_end_when_their_time_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not make the default selection three times as long."""
    monkeypatch.setattr(harness, "between", lambda *_: disturbance.Disturbance(0.4, 0.0))
    monkeypatch.setattr(harness, "REPEATING", 0.001)
    calls: list[int] = []
    for _ in range(2):
        harness.undisturbed(lambda: calls.append(1) or time.sleep(0.002))
    assert len(calls) == 2 + 1, "one repeat spends it all"
    assert harness.worst_disturbance()["disturbed"] is True


def test_rounds_go_on_until_a_disturbance_could_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def sample(turn: int) -> float:
        now[0] += 2.0
        return 2.0

    assert len(measure.in_turns({"a": sample}, rounds=3, seconds=900.0, shortest=19.0)["a"]) == 10
    assert len(measure.in_turns({"a": sample}, rounds=3, seconds=900.0)["a"]) == 3
    assert len(measure.in_turns({"a": sample}, rounds=9, seconds=0.0, shortest=19.0)["a"]) == measure.LEAST


def test_quick_runs_take_the_fewest_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "QUICK", True)
    monkeypatch.setattr(harness, "ATTEMPTS", 1)
    calls: list[int] = []
    assert len(harness.interleaved({"a": lambda: calls.append(1)}, rounds=9, seconds=60.0)["a"]) == len(calls) == 1


def test_check_names_what_got_slower_beyond_both_spreads() -> None:
    then = _row(ratio={"median": 10.0, "p20": 9.0, "p80": 11.0})
    same = _row(ratio={"median": 8.5, "p20": 8.0, "p80": 9.0})
    worse = _row(ratio={"median": 6.0, "p20": 5.0, "p80": 7.0}, commit="def")
    assert check.slower([same], [then]) == ([], 1)
    lines, compared = check.slower([worse, _row(name="new")], [then])
    assert compared == 1
    few = {"median": 8.0, "p20": 7.0, "p80": 9.0}
    assert check.slower([same | {"ratio": few, "rounds": 3}], [then]) == ([], 1), (
        "three rounds of such a spread say little"
    )
    assert len(check.slower([same | {"ratio": few, "rounds": 60}], [then | {"rounds": 60}])[0]) == 1, "sixty say it"
    assert lines == ["x c, forward, float32, native: 6.00 (5.00..7.00) times reference, was 10.00 (9.00..11.00) at abc"]
    assert check.slower([worse | {"disturbed": True}], [then]) == ([], 0)


def test_check_names_only_what_is_slower_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"median": 1.0, "p20": 1.0, "p80": 1.0}
    names = ("chance", "busy", "slower")
    (tmp_path / "committed").mkdir()
    monkeypatch.setattr(check, "RESULTS", tmp_path / "committed")
    rows.append(tmp_path / "committed" / "1.jsonl", _row(name="none"))
    for name in names:
        rows.append(tmp_path / "committed" / "1.jsonl", _row(name=name))
        rows.append(tmp_path / "now.jsonl", _row(name=name, ratio=slow, test=name))
    second = [_row(name="chance"), _row(name="busy", disturbed=True), _row(name="slower", ratio=slow)]
    asked: list[list[str]] = []

    def measured(command: list[str], **_: Any) -> None:
        asked.append(command)
        for row in second:
            rows.append(Path(command[-1]), row)

    monkeypatch.setattr(check.subprocess, "run", measured)
    assert check.main([str(tmp_path / "now.jsonl"), "--again", str(tmp_path / "again.jsonl")]) == 1
    assert set(names) < set(asked[0])
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if "was" in line] == ["busy", "slower"], "not what the second one refutes"
    assert "2 of 3 rows are slower or wrong" in said


def test_check_compares_our_sides_of_every_kind_on_the_same_machine_only() -> None:
    slow, wrong = {"median": 1.0, "p20": 1.0, "p80": 1.0}, {"passed": False, "why": "off by 3"}
    job = _row(kind="job", name="train", side="ours", direction="job")
    assert check.slower([job | {"ratio": slow}], [job])[1] == 1
    for other in ({"machine": "n"}, {"threads": 1}, {"dtype": "bfloat16"}, {"side": "compile"}, {"side": "reference"}):
        assert check.slower([job | other | {"ratio": slow}], [job, job | other | {"machine": "other"}]) == ([], 0)
    assert check.slower([job | {"parity": wrong, "dirty": True}], [job])[0] == [
        "train c, job, float32, ours: parity failed: off by 3"
    ]
    assert check.slower([job | {"parity": wrong, "disturbed": True}], [job])[1] == 1, "wrong, however busy the machine"


def test_check_says_how_many_rows_it_could_not_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "RESULTS", tmp_path / "committed")
    (tmp_path / "committed").mkdir()
    (tmp_path / "committed" / "1.jsonl").write_text(json.dumps(_row()) + "\n")
    now = tmp_path / "now.jsonl"

    def verdict(*rows: dict[str, Any]) -> tuple[int, str]:
        now.write_text("".join(json.dumps(row) + "\n" for row in rows))
        code = check.main([str(now)])
        return code, "".join(capsys.readouterr())

    assert verdict(_row(dirty=True), _row(name="new"), _row(side="reference")) == (
        0,
        "0 of 1 rows are slower or wrong\n1 were not compared: not committed for this machine, or disturbed (0)\n",
    )
    slow = {"median": 1.0, "p20": 1.0, "p80": 1.0}
    assert verdict(_row(ratio=slow))[0] == 1
    code, text = verdict(_row(ratio=slow, disturbed=True))
    assert code == 2
    assert "1 rows" in text
    assert "disturbed by other programs (1)" in text
    assert verdict(_row(machine="another card"))[0] == 2


def _row(**changes: Any) -> dict[str, Any]:
    row = {
        "kind": "op",
        "name": "x",
        "case": "c",
        "direction": "forward",
        "dtype": "float32",
        "side": "native",
        "baseline": "reference",
        "machine": "m",
        "threads": 2,
        "dirty": False,
        "commit": "abc",
        "rounds": 5,
        "ratio": {"median": 3.14159, "p20": 2.5, "p80": 4.0},
        "ratios": {},
    }
    return row | changes


def _finished_run(folder: Path, peak: str = "", name: str = "setr_pup_vit_t16") -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        f'{{"step": 5, "train/loss": 2.0, "train/lr": 0.1, "train/images_per_second": 4.0{peak}}}\n'
        '{"step": 5, "val/mIoU": 0.5}\n'
    )
    (folder / "train.log").write_text(
        "2026-01-01 10:00:00 m with 5.9 million weights; cpu, one process of 1 threads\n2026-01-01 10:30:30 b\n"
    )
    (folder / "config.toml").write_text(
        f'[model]\nname = "{name}"\n[augment]\ncrop = [2, 3]\n[train]\nbatch_size = 8\nprecision = "fp32"\n'
    )
    return folder


def test_a_run_becomes_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _finished_run(tmp_path / "run")
    scores = {"mIoU": 0.5, "aAcc": 0.6, "mAcc": 0.7, "IoU": {"sky": 0.5}, "majority_mIoU": 0.1, "images": 3}
    scores |= {"images_per_second": 2.0, "sha256": {}, "split": "val", "settings": {"data": {"root": "a/camvid"}}}
    (tmp_path / "m.json").write_text(json.dumps(scores))
    row = record_run.row_of("r", folder, tmp_path / "m.json")
    assert row["minutes"] == pytest.approx(30.5)
    assert row["data"] == "camvid val"
    assert row["curve"] == [[5, 0.5]]
    assert (row["model"], row["batch_size"], row["weights_millions"]) == ("setr_pup_vit_t16", 8, 5.9)
    assert (row["train_threads"], row["peak_mib"]) == (1, None)
    short = _finished_run(tmp_path / "short", ', "train/peak_mib": 812.4')
    assert record_run.row_of("r", short, tmp_path / "m.json")["peak_mib"] == 812
    other = record_run.row_of("r", folder, tmp_path / "m.json", short)
    assert (other["peak_mib"], other["minutes"]) == (812, None), "what a short run cost, and no minutes of the long one"
    other = _finished_run(tmp_path / "other", name="setr_mla_vit_t16")
    assert record_run.main(["r", str(folder), str(tmp_path / "m.json"), "--cost-from", str(other)]) == 2
    assert "its cost says nothing of this run" in capsys.readouterr().err


def test_a_run_is_not_credited_to_a_commit_that_is_younger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").write_text("2001-01-01 10:00:00 a\n")
    assert record_run.main(["r", str(tmp_path), str(tmp_path / "m.json")]) == 2
    assert "name the commit that trained" in capsys.readouterr().err
