"""The one go on a machine with a GPU: what fails is named and the rest still runs; a copy knows its commit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import stamp

ROOT = Path(__file__).resolve().parents[1]
STUB = """#!/bin/bash
echo "$@" >>calls.txt
case "$*" in
    *setr_fast.doctor*) echo "no card"; exit 4 ;;
    *foreign.whl*) echo "not for this platform"; exit 1 ;;
    *--record-to*) all="$*"; out=${all#*--record-to }; echo '{}' >"${out%% *}" ;;
    *benchmarks.trace*) head -c 17000000 /dev/zero >"$3/profile.json.gz"; echo table >"$3/profile.txt" ;;
esac
"""


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A folder with the script, two carried wheels, and a stand-in for Python that notes what it is asked for."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "carry").mkdir()
    shutil.copy(ROOT / "benchmarks" / "gpu_session.sh", tmp_path / "benchmarks")
    for name in ("first.whl", "foreign.whl"):
        (tmp_path / "carry" / name).touch()
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def _run(session: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    known = {"PATH": os.environ["PATH"], "PYTHON": str(session / "python"), "OUT": str(session / "out")}
    script = str(session / "benchmarks" / "gpu_session.sh")
    return subprocess.run(["bash", script], env=known | settings, capture_output=True, text=True, timeout=60)


def test_a_failing_stage_is_named_and_the_others_run(session: Path) -> None:
    done = _run(session)
    assert done.returncode == 1
    for name in ("wheel first.whl", "build", "tests", "benchmarks", "profile"):
        assert f"{name}: ok" in done.stdout
    assert "doctor: FAILED (exit code 4)" in done.stdout
    assert "no card" in done.stdout
    assert "wheel foreign.whl: FAILED" in done.stdout
    assert "failed: wheel foreign.whl doctor" in done.stdout
    calls = (session / "calls.txt").read_text()
    assert "--no-index --no-deps" in calls
    assert "-m pytest -m gpu" in calls


def test_few_files_of_bounded_size_are_left(session: Path) -> None:
    done = _run(session)
    left = {path.name: path.stat().st_size for path in (session / "out").iterdir()}
    assert {"session.log", "rows.jsonl", "profile.txt"} <= left.keys()
    assert len(left) <= 8
    assert max(left.values()) <= 16 << 20
    assert "profile.json.gz: too large" in done.stdout


def test_stages_beyond_the_budget_are_not_begun(session: Path) -> None:
    done = _run(session, BUDGET="2")
    assert "build: not begun, 2 s are over" in done.stdout
    assert not (session / "calls.txt").exists()


def _git(folder: Path, *arguments: str) -> None:
    names = ["-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_copy_without_history_knows_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    home.mkdir()
    (home / "a b.py").write_text("x = 1\n")
    (home / "link").symlink_to("a b.py")
    _git(home, "init", "-q")
    _git(home, "add", ".")
    _git(home, "commit", "-qm", "one")
    stamp.write(home / "carry" / "stamp.txt", home)
    shutil.copytree(home, copy, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    commit, dirty = stamp.verified(copy / "carry" / "stamp.txt", copy)
    assert len(commit) >= 7
    assert not dirty
    (copy / "a b.py").write_text("x = 2\n")
    assert stamp.verified(copy / "carry" / "stamp.txt", copy) == (commit, True)
    (copy / "a b.py").unlink()
    assert stamp.verified(copy / "carry" / "stamp.txt", copy) == (commit, True)
    assert stamp.verified(tmp_path / "none.txt", copy) == ("", True)
