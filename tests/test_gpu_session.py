"""The one go on a machine with a GPU: what fails is named and the rest still runs; a copy knows its commit."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import needs, stamp

ROOT = Path(__file__).resolve().parents[1]
STUB = """#!/bin/bash
echo "$@" >>calls.txt
echo "said by $*"
case "$*" in *"${SLEEPS:-no stage}"*) printf "amid a line"; trap '' TERM; sleep 1000 & wait; wait ;; esac
case "$*" in
    *setr_fast.doctor*) echo "no card"; exit 4 ;;
    *benchmarks.needs*) if [ -n "${HANGS:-}" ]; then trap '' TERM; sleep 30 & wait; wait; fi ;;
    *foreign.whl*) echo "not for this platform"; exit 1 ;;
    *--record-to*) all="$*"; out=${all#*--record-to }; echo '{}' >"${out%% *}" ;;
    *benchmarks.trace*) head -c 17000000 /dev/zero >"$3/profile.json.gz"; echo table >"$3/profile.txt"
        for number in 1 2 3 4 5 6; do echo "$number" >"$3/more$number.bin"; done ;;
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
    assert "-m benchmarks.survive 6 -m gpu" in calls


def test_few_files_of_bounded_size_are_left(session: Path) -> None:
    """Those that matter most stay; what lay in the folder before is not touched."""
    (session / "out").mkdir()
    large = session / "out" / "notes.bin"
    large.write_bytes(bytes(17 << 20))
    os.utime(large, (0, 0))
    done = _run(session)
    left = {path.name: path.stat().st_size for path in (session / "out").iterdir()}
    assert left.pop("notes.bin") == 17 << 20
    assert {"session.log", "rows.jsonl", "profile.txt"} <= left.keys()
    assert len(left) <= 8
    assert max(left.values()) <= 16 << 20
    assert "profile.json.gz: too large" in done.stdout
    assert "more6.bin: left out" in done.stdout


def test_all_shares_together_end_under_eight_minutes() -> None:
    script = (ROOT / "benchmarks" / "gpu_session.sh").read_text()
    shares = [int(n) for n in re.findall(r"^ *(?:stage \w+ |planned=)(\d+)", script, re.MULTILINE)]
    total = int(re.search(r"^SHARES=(\d+)", script, re.MULTILINE)[1])  # type: ignore[index]
    assert sum(shares) == total
    assert total + 10 < 8 * 60


def test_a_stage_that_hangs_costs_the_later_ones_nothing(session: Path) -> None:
    started = time.monotonic()
    done = _run(session, BUDGET="150", HANGS="1")
    assert "needs: FAILED (exit code 137)" in done.stdout  # it ignored the first signal too
    for name in ("build", "tests", "benchmarks", "profile"):
        assert f"{name}: ok" in done.stdout
    assert time.monotonic() - started < 60


STAGES = (
    *("benchmarks.needs", "setup.py build_ext", "setr_fast.doctor", "benchmarks.survive 6", "benchmarks.survive 1"),
    *("benchmarks.trace", "benchmarks.launches"),
)


@pytest.mark.parametrize("name", STAGES)
def test_what_was_said_reaches_the_folder_though_all_is_killed(name: str, session: Path) -> None:
    """A stage never ends and somebody kills the whole, without a signal that could be answered."""
    settings = {"PATH": os.environ["PATH"], "PYTHON": str(session / "python"), "OUT": str(session / "out")}
    script, log = str(session / "benchmarks" / "gpu_session.sh"), session / "out" / "session.log"
    command = ["bash", script]
    process = subprocess.Popen(
        command, env=settings | {"SLEEPS": name}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        ended = time.monotonic() + 50
        while time.monotonic() < ended and not (log.is_file() and "amid a line" in log.read_text()):
            time.sleep(0.02)
    finally:
        for pid in _descendants(process.pid):  # timeout(1) gives each stage a group of its own
            os.kill(pid, signal.SIGKILL)
        process.wait()
    said = log.read_text()
    for stage in STAGES[: STAGES.index(name) + 1]:
        assert re.search(rf"^said by .*{stage}", said, re.MULTILINE), stage
    assert said.endswith("amid a line")
    left = {path.name for path in (session / "out").iterdir()}
    assert ("rows.jsonl" in left) is (name in STAGES[5:])


def _descendants(pid: int) -> list[int]:
    children = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")).split()  # by threads
    return [pid, *(found for child in children for found in _descendants(int(child)))]


def test_stages_beyond_the_budget_are_not_begun(session: Path) -> None:
    done = _run(session, BUDGET="0")
    assert "build: not begun, its time is over" in done.stdout
    assert "failed: wheel first.whl" in done.stdout
    assert not (session / "calls.txt").exists()


def test_what_a_machine_lacks_is_said_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"torch", "tyro", "safetensors", "pybind11", "cmake", "pytest-benchmark"} <= needs.wanted().keys()
    monkeypatch.setattr(needs, "TOOLS", ())
    monkeypatch.setattr(needs, "_installed", lambda name: name not in ("tyro", "xformers"))
    assert needs.main() == 1
    said = capsys.readouterr().out
    assert "tyro: not installed\n" in said
    assert "-d carry xformers tyro" in said
    monkeypatch.setattr(needs, "_installed", lambda name: name != "xformers")
    assert needs.main() == 0
    assert "its side of comparisons will be missing" in capsys.readouterr().out
    monkeypatch.setattr(needs, "_installed", lambda name: True)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "76.1" if name == "setuptools" else "999.0+cu130")
    assert needs.main() == 1
    said = capsys.readouterr().out
    assert "setuptools: 76.1 is installed, 77 or newer is needed" in said
    assert said.count("or newer is needed") == 1


BREAKS = """
import sys, types
def test_before(): pass
def test_breaks():
    def lost(): raise RuntimeError("an illegal memory access was encountered")
    cuda = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, synchronize=lost)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
def test_in_a_fresh_process(): assert "torch" not in sys.modules
def test_kills():
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
def test_after(): pass
"""


def test_tests_go_on_after_one_that_broke_the_card(tmp_path: Path) -> None:
    (tmp_path / "test_them.py").write_text(BREAKS)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.survive", "1", "test_them.py", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "test_them.py::test_breaks broke the card: an illegal memory access was encountered" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    ends = [line for line in done.stdout.splitlines() if line.startswith("survive: ")]
    assert [line.split("::")[1].split()[0] for line in ends] == ["test_breaks", "test_kills"]
    assert "1 passed in" in done.stdout, "what came after the last"


def test_why_a_test_failed_is_said_before_the_others_end(tmp_path: Path) -> None:
    """Its process is killed in the next test, and all of it with the next signal."""
    (tmp_path / "test_them.py").write_text(
        "import time\ndef test_fails(): assert 'what' == 'was wanted'\ndef test_hangs(): time.sleep(1000)\n"
    )
    command = [sys.executable, "-m", "benchmarks.survive", "1", "test_them.py", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said)
    try:
        ended = time.monotonic() + 50
        while time.monotonic() < ended and "was wanted" not in (tmp_path / "said").read_text():
            time.sleep(0.05)
        assert process.poll() is None, "it was said while the next test ran"
    finally:
        for pid in _descendants(process.pid):  # the first first: it would start another in a lost one's place
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert "test_them.py::test_fails failed:" in (tmp_path / "said").read_text()


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
