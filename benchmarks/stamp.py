"""``python -m benchmarks.stamp FILE``: write down which commit a copy without its history is, file by file.

A machine without a network is handed the files alone. With the stamp beside them, rows measured there name their
commit, and say that the tree was dirty where any file differs from it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = ROOT / "carry" / "stamp.txt"
LINK = "120000"


def write(path: Path, root: Path = ROOT) -> None:
    """Write the commit, then mode, SHA-1 and name of each of its files."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout

    lines = [git("rev-parse", "--short", "HEAD").strip()]
    for entry in git("ls-tree", "-r", "-z", "HEAD").split("\0"):
        if entry:
            facts, _, name = entry.partition("\t")
            mode, _, digest = facts.split()
            lines.append(f"{mode} {digest} {name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def verified(path: Path = STAMP, root: Path = ROOT) -> tuple[str, bool]:
    """Return the commit of a copy and whether it differs from it; no commit without a stamp."""
    if not path.is_file():
        return "", True
    commit, *lines = path.read_text().splitlines()
    return commit, any(_blob(root / name, mode) != digest for mode, digest, name in (x.split(" ", 2) for x in lines))


def _blob(path: Path, mode: str) -> str:
    """Return what git calls a file's content, or nothing where there is no such file."""
    try:
        content = path.readlink().as_posix().encode() if mode == LINK else path.read_bytes()
    except OSError:
        return ""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else STAMP)
