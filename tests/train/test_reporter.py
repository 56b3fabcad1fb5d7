"""What a run writes while it goes: records, the log, TensorBoard, and the bar's replacement away from a terminal."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from setr_fast.errors import BackendError
from setr_fast.metrics import Scores
from setr_fast.train.reporter import Reporter


def _reporter(folder: Path, **changes: Any) -> Reporter:
    options: dict[str, Any] = {
        "steps": 10,
        "first_step": 0,
        "batch_size": 4,
        "log_every": 5,
        "speaks": True,
        "tensorboard": False,
    }
    return Reporter(folder, **(options | changes))


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_fifth_step_is_a_record_of_the_mean_loss_and_the_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _reporter(tmp_path) as reporter:
        for step in range(1, 11):
            reporter.step(step, float(step), 0.5, 0.1, 0.5)
    records = _records(tmp_path)
    assert [r["step"] for r in records] == [5, 10]
    assert [r["train/loss"] for r in records] == [3.0, 8.0]
    assert records[0]["train/images_per_second"] == pytest.approx(8.0)
    error = capsys.readouterr().err
    assert "loss 3.0000" in error
    assert "images/s" in error
    assert "left 0:02" in error
    assert "step 5/10" in (tmp_path / "train.log").read_text()


def test_speed_is_stated_with_the_time_that_data_took_and_against_a_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _reporter(tmp_path, step_flops=3e9, peak_flops=24e9) as reporter:
        for step in range(1, 6):
            reporter.step(step, 1.0, 0.5, 0.1, 0.5, waited=0.05)
    (record,) = _records(tmp_path)
    assert record["train/data_wait"] == pytest.approx(0.1)
    assert record["train/mfu"] == pytest.approx(0.25)
    assert "8.0 images/s  data 10%  MFU 25%" in capsys.readouterr().err


def test_the_first_step_is_told_and_what_checkpoints_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with _reporter(tmp_path) as reporter:
        reporter.step(1, 1.0, 0.5, 0.1, 0.5)
        assert "step 1/10  loss 1.0000  8.0 images/s  left 0:04" in capsys.readouterr().err
        reporter.saving(0.1)
        for step in range(2, 11):
            reporter.step(step, 1.0, 0.5, 0.1, 0.475)
    first, second = _records(tmp_path)
    assert first["train/save_wait"] == pytest.approx(0.1 / (0.5 + 4 * 0.475 + 0.1))
    assert "train/save_wait" not in second
    assert "save 4%" in capsys.readouterr().err


def test_a_class_that_is_absent_becomes_null_not_broken_json(tmp_path: Path) -> None:
    scores = Scores.of(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])).as_dict(["sky", "road", "train"])
    with _reporter(tmp_path) as reporter:
        reporter.validation(10, scores)
    assert _records(tmp_path)[0]["val/IoU/train"] is None


def test_a_resumed_run_drops_records_it_will_write_again_and_a_cut_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 10}\n{"step": 15}\n{"st')
    _reporter(tmp_path, first_step=10)
    assert [r["step"] for r in _records(tmp_path)] == [5, 10]


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    with _reporter(tmp_path, speaks=False) as reporter:
        reporter.step(10, 1.0, 0.5, 0.1, 0.5)
        reporter.line("nobody hears this")
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder.endswith("events")

        def add_scalar(self, key: str, value: float, step: int) -> None:
            assert isinstance(value, int | float)
            written.append((key, value, step))

        def close(self) -> None:
            written.append(("closed", 0, 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with _reporter(tmp_path, tensorboard=True) as reporter:
        for step in range(1, 6):
            reporter.step(step, 2.0, 0.5, 0.1, 0.5)
        reporter.validation(5, Scores.of(np.eye(2, dtype=np.int64)).as_dict(["sky", "road"]))
    assert ("val/IoU/road", 1.0, 5) in written
    assert ("train/loss", 2.0, 5) in written
    assert written[-1][0] == "closed"


def test_tensorboard_that_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BackendError, match="pip install 'setr_fast\\[tensorboard\\]'"):
        _reporter(tmp_path, tensorboard=True)
