"""``python -m benchmarks.survive JOBS [arguments of pytest]``: pytest that goes on after a test that broke the card.

An illegal access of one kernel leaves the CUDA context of its process unusable: every later test there fails, whatever
it tests. So each test waits for the card, a test that breaks it fails and ends its process, and what comes after it
runs in a fresh one. The same holds for a test that kills its process, or that says nothing for QUIET seconds. The tests
are dealt to JOBS processes that run at the same time; for timings that is 1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest

NOTES = "SETR_FAST_SURVIVE_NOTES"
"""Names the folder of two files: ``listed``, the ids of all tests, and ``begun``, of those that began."""
GOES_ON = "SETR_FAST_GOES_ON"
"""Set where an earlier process ran the tests before these: what it wrote stays."""
QUIET = 90.0
"""Seconds that a test may take. The first calls of libraries and of compilers are among them."""
ENDED = (0, 1, 5)
"""Exit codes of a pytest that came to its end: all passed, some failed, there were none."""
LAST_WORDS = 1.0
"""Seconds that what ended processes said may take to pass."""


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell which tests there are."""
    if folder := os.environ.get(NOTES):
        Path(folder, "listed").write_text("".join(item.nodeid + "\n" for item in session.items))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note which test begins."""
    if folder := os.environ.get(NOTES):
        with Path(folder, "begun").open("a") as begun:
            begun.write(item.nodeid + "\n")
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once why a test failed: pytest does when all of them ended, and that may never be."""
    if report.failed and NOTES in os.environ:
        _say(f"\n{report.nodeid} failed:\n{report.longreprtext}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Wait for the card: what it says of a kernel is said of the test that launched it."""
    try:
        return (yield)
    finally:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                item.session.shouldstop = "the card's context is broken"
                raise RuntimeError(f"{item.nodeid} broke the card: {str(error).splitlines()[0]}") from error


def main(arguments: list[str]) -> int:
    """Return 0 if every test passed or was skipped."""
    signal.signal(signal.SIGTERM, _end)
    jobs, given = int(arguments[0]), arguments[1:]
    places = [a for a in given if not a.startswith("-") and (a.endswith(".py") or "::" in a or Path(a).is_dir())]
    options = [a for a in given if a not in places]
    parts, broken = [places], []
    if jobs > 1:
        found, broken = _collected(given)
        size = max(-(-len(found) // jobs), 1)
        parts = [found[first : first + size] for first in range(0, len(found), size)]
    with ThreadPoolExecutor(jobs) as pool:
        broken += [name for names in pool.map(lambda part: _run(part, options), parts) for name in names]
    for name in broken:
        print(f"survive: {name}")
    return 1 if broken else 0


def _collected(given: list[str]) -> tuple[list[str], list[str]]:
    """Return the ids of the tests, and whether some could not be imported."""
    with tempfile.TemporaryDirectory() as folder:
        code = _watched(_pytest("--collect-only", *given), Path(folder), quietly=True)
        found = Path(folder, "listed").read_text().splitlines()
    if code == 5:
        return [], ["pytest finds no test"]
    return found, [] if code == 0 else [f"pytest cannot collect all tests, exit code {code}"]


def _run(chosen: list[str], options: list[str]) -> list[str]:
    """Run tests in order, in as many processes as it takes; return what came to no good end."""
    broken: list[str] = []
    while True:
        with tempfile.TemporaryDirectory() as folder:
            code = _watched(_pytest(*options, *chosen), Path(folder), goes_on=bool(broken))
            listed, begun = (Path(folder, name).read_text().splitlines() for name in ("listed", "begun"))
        if code in ENDED:
            return [*broken, *(["tests failed, see above"] if code == 1 else [])]
        if not begun:
            return [*broken, f"pytest ended with {code} before its first test"]
        broken.append(f"{begun[-1]} broke the card, killed its process or hung")
        chosen = listed[listed.index(begun[-1]) + 1 :]
        if not chosen:
            return broken


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "benchmarks.survive", *arguments]


def _watched(command: list[str], folder: Path, *, goes_on: bool = False, quietly: bool = False) -> int:
    """Run a pytest that leaves its notes in ``folder``; kill it when no test began for QUIET seconds.

    What it says is passed on line by line, so that nothing is lost should all of us be killed; ``quietly``: only when
    it came to no good end.

    Returns: its exit code.
    """
    begun = folder / "begun"
    for note in (begun, folder / "listed"):
        note.touch()
    environment = os.environ | {NOTES: str(folder)} | ({GOES_ON: "1"} if goes_on else {})
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said: list[str] = []
    reader = threading.Thread(target=_pass_on, args=(process.stdout, said.append if quietly else _say), daemon=True)
    reader.start()
    size = -1
    while process.poll() is None:
        try:
            process.wait(QUIET)
        except subprocess.TimeoutExpired:
            if begun.stat().st_size == size:
                process.kill()
            size = begun.stat().st_size
    reader.join(LAST_WORDS)
    if process.returncode not in ENDED:
        _say("".join(said))
    return process.returncode


def _pass_on(stream: IO[str], say: Callable[[str], None]) -> None:
    for line in stream:
        say(line)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _end(*_: Any) -> None:
    """Our time is over, and that of the processes with us: let their last words pass."""
    time.sleep(LAST_WORDS)
    _say("survive: ended from outside\n")
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
