"""``setr-fast bench --adopt``: what is right and faster here is used from then on, nothing else is, not for ever."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from setr_fast import adopt, verdict
from setr_fast.cli import main
from setr_fast.errors import EXIT_ENVIRONMENT, EXIT_USAGE
from setr_fast.ops import OPS, _adopted
from setr_fast.ops._op import REFERENCE, Backend, Draw, Op
from setr_fast.report import doctor

OP = "confusion_matrix"
Function = Callable[..., torch.Tensor]
RIGHT: Function = OPS[OP].reference


SECONDS = {"used": 3.0, REFERENCE: 2.0, "planted": 1.0}


def _timed(op: Op, args: tuple[Any, ...], names: list[str], *_: Any, **__: Any) -> dict[str, list[float]]:
    return {name: [SECONDS[name]] for name in names}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of choices of this test's own."""
    monkeypatch.setenv("SETR_FAST_ADOPTED", str(tmp_path / "new" / "adopted.json"))
    monkeypatch.setitem(verdict.WORK, "cpu", 2e6)
    _adopted.choices.cache_clear()
    yield tmp_path / "new" / "adopted.json"
    _adopted.choices.cache_clear()


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give ``OP`` two backends: ``used``, the slowest of all, and ``planted``, the fastest, which nobody has tried."""

    def put(function: Function, **facts: Any) -> None:
        used = Backend("used", lambda name: RIGHT, "cpu")
        planted = Backend("planted", lambda name: function, "cpu", untried=True, **facts)
        fresh: dict[str, Any] = {"_found": {}, "_choices": {}, "_orders": {}}
        sides = dataclasses.replace(OPS[OP], backends=(used, planted), **fresh)
        monkeypatch.setitem(OPS, OP, sides)
        monkeypatch.setattr(adopt, "timed", _timed)

    return put


def _adopt() -> int:
    return main(["bench", OP, "--adopt", "--seconds", "0"])


def _used() -> str:
    return OPS[OP].choose(*next(iter(OPS[OP].cases())).make(Draw.on()))


def test_what_is_right_and_faster_is_used_from_then_on(
    plant: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(RIGHT)
    assert _used() == "used"
    assert _adopt() == 0
    assert "adopted: planted" in capsys.readouterr().out
    assert _used() == "planted"
    assert f"on cpu: {OP} = planted (float32)" in doctor()
    with _adopted.ignored():
        assert _used() == "used"
    assert _adopt() == 0  # what was adopted is not what it is measured against
    assert "planted" in capsys.readouterr().out.split("adopted: ")[1]
    monkeypatch.setenv("SETR_FAST_ADOPTED", "off")
    _adopted.choices.cache_clear()
    assert _used() == "used"
    assert _adopt() == EXIT_USAGE


def test_a_wrong_backend_is_never_adopted_however_fast(
    plant: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    plant(lambda *args: torch.zeros_like(RIGHT(*args)))
    assert _adopt() == EXIT_ENVIRONMENT
    printed = capsys.readouterr().out
    assert "planted WRONG (" in printed
    assert "adopted: reference" in printed  # which is right, and faster than what was used
    assert _used() == REFERENCE


def test_a_backend_that_is_wrong_in_one_odd_case_only_is_not_adopted(plant: Callable[..., None]) -> None:
    cases = list(OPS[OP].cases())
    odd = next(c for c in cases if not c.bench).make(Draw.on())[0].shape

    def mostly(*args: Any) -> torch.Tensor:
        return RIGHT(*args) + (args[0].shape == odd)

    plant(mostly)
    assert _adopt() == EXIT_ENVIRONMENT
    assert _used() == REFERENCE


def test_a_backend_that_raises_is_named_and_the_rest_is_judged(
    plant: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(*args: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image\nand more")

    plant(raises)
    assert _adopt() == EXIT_ENVIRONMENT
    assert "raised RuntimeError: no kernel image)" in capsys.readouterr().out


def test_a_backend_whose_bits_differ_from_call_to_call_is_not_adopted(plant: Callable[..., None]) -> None:
    plant(RIGHT, repeats=False)
    assert _adopt() == 0
    assert _used() == REFERENCE


def test_other_kernels_or_another_machine_make_choices_void(
    plant: Callable[..., None], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(RIGHT)
    assert _adopt() == 0
    for name in ("made_with", "place"):
        with monkeypatch.context() as other:
            other.setattr(_adopted, name, lambda *_: "another")
            _adopted.choices.cache_clear()
            assert _used() == "used"
        _adopted.choices.cache_clear()
        assert _used() == "planted"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', '{"x": {"choices": {"confusion_matrix": 3}}}'])
def test_a_file_that_is_not_ours_is_no_choice_and_is_replaced(
    content: str, plant: Callable[..., None], kept: Path
) -> None:
    kept.parent.mkdir()
    kept.write_text(content.replace("x", _adopted.place("cpu").replace('"', "")))
    plant(RIGHT)
    assert _used() == "used"
    assert _adopt() == 0
    assert json.loads(kept.read_text())[_adopted.place("cpu")]["choices"] == {OP: {"float32": "planted"}}


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SETR_FAST_ADOPTED", str(tmp_path / "file" / "adopted.json"))
    assert _adopt() == EXIT_ENVIRONMENT
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err
    assert OP not in captured.out


def test_a_kernel_that_takes_the_card_with_it_costs_one_op_and_the_rest_goes_on_in_a_new_process(
    plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    broken = False

    def breaks(*args: Any) -> torch.Tensor:
        nonlocal broken
        broken = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def synchronize() -> None:
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    plant(breaks)
    started: list[list[str]] = []
    monkeypatch.setattr(verdict, "synchronize", synchronize)
    monkeypatch.setattr(os, "execv", lambda program, argv: started.append(argv))
    assert main(["bench", OP, "to_bytes", "--adopt", "--seconds", "0"]) == EXIT_ENVIRONMENT
    assert started == [[sys.executable, "-m", "setr_fast.bench", "to_bytes", "--adopt", "--seconds=0.0"]]
    assert _used() == "used"
