"""The command line from outside: exit codes, one-line failures, speed of --help."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest

from setr_fast.cli import VERBS, main
from setr_fast.cli._parse import _fits, parse
from setr_fast.cli.eval import EvalArguments
from setr_fast.cli.train import train_defaults

ROOT = Path(__file__).resolve().parents[1]


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("verb", ["train", "eval", "compare", "predict", "export", "data", "doctor"])
def test_every_verb_is_a_module(verb: str) -> None:
    done = _run(f"setr_fast.{verb}", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.parametrize("verb", ["train", "eval", "compare", "plan", "predict", "export"])
def test_help_loads_nothing_heavy(verb: str) -> None:
    code = (
        "import sys; from setr_fast.cli import main\n"
        f"try: main(['{verb}', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*{'torch', 'numpy', 'typeguard', 'asyncio', 'unittest'} & set(sys.modules), file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stderr == "\n"


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (None, int | None, True),
        ("x", int | None, False),
        ((1, 2), tuple[int, int], True),
        ((1, 2, 3), tuple[int, int], False),
        ((1, 0.5), tuple[float, ...], True),
        ([1.0], tuple[float, ...], False),
        (("a", "c"), tuple[Literal["a", "b"], ...], False),
        (Path("x"), Path | None, True),
    ],
)
def test_defaults_are_compared_with_their_types(value: object, kind: object, fits: bool) -> None:
    assert _fits(value, kind) is fits


def test_unknown_option_names_the_nearest_and_exits_2() -> None:
    done = _run("setr_fast.train", "--optim.lrr", "1")
    assert done.returncode == 2
    assert "--optim.lr" in done.stderr


def test_unknown_verb_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    error = capsys.readouterr().err
    assert all(verb in error for verb in VERBS)


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["train", "--config", "gone.toml"], 2, "gone.toml: no such config file"),
        (["train", "--recipe", "none-such"], 2, "recipe: must be one of"),
        (["train", "--resume"], 2, "needs --run-dir"),
        (["train", "--train.steps", "0"], 2, "setr-fast train: train.steps: must be 1 or more"),
        (["train", "--data.num-classes", "1"], 2, "setr-fast train: data.num_classes: must be 2..254, got 1"),
        (["eval", "--checkpoint", "gone", "--scales", "0"], 2, "setr-fast eval: scales: must be positive numbers"),
        (["train", "--recipe", "camvid"], 2, "did you mean camvid_tiny"),
        (["bench", "to_byte"], 2, "setr-fast bench: op: must be one of"),
        (["data", "coco", "gone.json", "RUN"], 3, "gone.json: must be a file that can be read, got 'No such file"),
        (["train", "--model.name", "setr_pup_vit_t17", "--run-dir", "RUN"], 2, "setr_pup_vit_t16"),
        (["train", "--data.root", "gone", "--run-dir", "RUN"], 3, "gone"),
        (["eval", "--checkpoint", "gone"], 3, "gone"),
        (["predict", "--checkpoint", "gone", "--out", "RUN", "x.png"], 3, "gone"),
        (["eval", "--checkpoint", "gone", "--boundary-ratio", "0"], 2, "boundary_ratio: must be above 0"),
        (["eval", "--checkpoint", "gone", "--mae-class", "1"], 2, "mae_class: needs --metrics mae"),
        (["compare", "gone.json", "gone.json"], 3, "gone.json: result must be a file that can be read"),
        (["train", "--recipe", ""], 2, "recipe: must be one of"),
        (["eval", "--checkpoint", "gone", "--recipe="], 2, "recipe: must be one of"),
        (["plan", "--batch", "1000000000000"], 2, "batch at most 1000000"),
        (["bench", "to_bytes", "--seconds=-1"], 2, "seconds: must lie in 0..3600"),
        (["export", "--checkpoint", "x", "--out", "x.pt2", "--sizes", "1000000000"], 2, "sizes: must lie in 0..10000"),
        (["convert", "gone", "RUN", "--base", "gone"], 2, "--base must come with adapters"),
        (["train", "--nproc", "0"], 2, "nproc: must lie in 1..1024, got 0"),
        (["train", "--data.workers", "100000"], 2, "data.workers: must lie in 0..1024"),
        (["eval", "--checkpoint", "gone", "--scales", "1e300"], 2, "scales: must be positive numbers up to 64"),
        (["eval", "--checkpoint", "gone", "--resize-short", "1000000000000"], 2, "resize_short: must be at most"),
        (["compare", "gone.json", "gone.json", "--bootstrap", "1000000000"], 2, "and at most 1000000"),
        (["compare", "gone.json", "gone.json", "--bootstrap", "5"], 2, "bootstrap: must be 0, or at least 100"),
        (["data", "check", "gone"], 3, "gone"),
        (["data", "check"], 2, "needs the folder"),
    ],
)
def test_known_failures_are_one_line_and_an_exit_code(
    argv: list[str], code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(tmp_path / "run") if a == "RUN" else a for a in argv]
    try:
        got = main(argv)
    except SystemExit as stop:  # the parser's own
        got = int(stop.code or 0)
    out, error = capsys.readouterr()
    assert got == code, error
    assert text in (out if argv[:2] == ["data", "check"] and code == 3 else error)  # the report is what check prints
    assert "Traceback" not in error
    if error.startswith("setr-fast"):
        assert error.strip().count("\n") == 0


def test_a_value_that_is_missing_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--recipe"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Missing value for argument '--recipe'" in error
    assert "usage:" not in error


@pytest.mark.parametrize("argv", [["consolidate", "run", "--out="], ["eval", "--checkpoint", ""], ["convert", "a", ""]])
def test_an_empty_path_is_refused_and_not_taken_for_the_current_folder(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "must be a path, got an empty one" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["train", "predict", "export"])
def test_help_breaks_lines_only_where_the_next_word_has_no_room(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    rows = [row.replace("\u2502", " ").rstrip() for row in capsys.readouterr().out.splitlines()]
    texts = 0
    for row, following in pairwise(rows):
        indent, same = len(row) - len(row.lstrip()), len(following) - len(following.lstrip())
        if indent == same > 4:
            texts += 1
            assert len(row) + 1 + len(following.split()[0]) > 76, (row, following)
    assert texts > 5


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "full", "/x/a.png"), "/x/a.png: must be readable and writable, got 'No space left"),
        (OSError(errno.EACCES, "no", "/x/.setr_fast-abc"), "/x: must be readable and writable, got 'Permission"),
        (OSError(errno.ENOTDIR, "no", "/t", None, "/x/link"), "/x/link: must be"),
        (RuntimeError("zip archive: unexpected pos 64 vs 0"), "a file: must be readable and writable, got 'No space"),
    ],
)
def test_a_disk_or_a_permission_is_one_line_and_the_environments(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        if isinstance(error, RuntimeError):
            raise error from OSError(errno.ENOSPC, "full")
        raise error

    monkeypatch.setattr("setr_fast.cli.lists.doctor", fail)
    assert main(["doctor"]) == 4
    said = capsys.readouterr().err
    assert said.startswith(f"setr-fast doctor: {told}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "gone", "x"), KeyError("x")])
def test_a_fault_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("setr_fast.cli.lists.doctor", fail)
    with pytest.raises(type(error)):
        main(["doctor"])


def test_eval_refuses_a_result_it_could_not_write_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    assert main(["eval", "--checkpoint", "gone", "--out", str(tmp_path / "new" / "m.json")]) == 4
    assert "out: must be where files can be written" in capsys.readouterr().err


def test_comparing_two_results_needs_no_torch(tmp_path: Path) -> None:
    scores = {"mIoU": 0.5, "aAcc": 0.5, "mAcc": 0.5, "IoU": {"a": 0.5}, "sha256": {"data": "x"}}
    (tmp_path / "a.json").write_text(json.dumps(scores))
    (tmp_path / "b.json").write_text(json.dumps(scores | {"sha256": {"data": "y"}}))
    code = (
        "import sys; from setr_fast.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    argv = [sys.executable, "-c", code, "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    refused = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "must be of the first's data" in refused.stderr
    forced = subprocess.run([*argv, "--force"], cwd=ROOT, capture_output=True, text=True)
    assert forced.returncode == 0
    assert "+0.00" in forced.stdout


def test_metrics_are_a_list_with_commas_or_blanks() -> None:
    for given in (["--metrics", "mae,boundary"], ["--metrics", "boundary", "mae"]):
        assert parse(EvalArguments, ["--checkpoint", "x", *given], "eval").scoring.metrics == ("boundary", "mae")


def test_flags_go_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[train]\nsteps = 7\n")
    assert train_defaults(["--config", str(file)]).train.steps == 7
    assert train_defaults(["--recipe", "camvid_tiny"]).data.ignore_index is None
    both = train_defaults(["--recipe", "camvid_tiny", "--config", str(file), "--optim.lr", "1"])
    assert both.train.steps == 7
    assert both.augment.crop == train_defaults(["--recipe", "camvid_tiny"]).augment.crop


def test_doctor_lists_every_op_and_a_star_for_what_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    from setr_fast.ops import OPS

    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in OPS)
    assert text.count("*") >= len(OPS)
