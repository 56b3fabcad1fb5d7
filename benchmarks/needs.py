"""``python -m benchmarks.needs``: what a machine lacks for ``gpu_session.sh``, and how to carry it there.

Nothing but the standard library is imported. xformers is only one side of a comparison, so it may be missing.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEYOND = ("cmake", "pytest")
"""Needed to build and to test, beside what the package itself asks for."""
OPTIONAL = ("xformers",)
TOOLS = ("nvcc",)


def main() -> int:
    """Print what is missing; exit code 1 if something is that the session cannot do without."""
    missing = [name for name in wanted() if not _installed(name)]
    tools = [tool for tool in TOOLS if shutil.which(tool) is None and not Path("/usr/local/cuda/bin", tool).exists()]
    for name in tools:
        print(f"{name}: not on PATH nor in /usr/local/cuda/bin")
    for name in missing:
        print(f"{name}: not installed" + ("; its side of comparisons will be missing" if name in OPTIONAL else ""))
    if missing:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        print(
            "where there is a network: pip download --no-deps --only-binary=:all: "
            f"--python-version {version} --platform manylinux_2_28_x86_64 -d carry {' '.join(missing)}"
        )
    else:
        print("nothing is missing" if not tools else "no package is missing")
    return 1 if tools or set(missing) - set(OPTIONAL) else 0


def wanted() -> list[str]:
    """Return the names of the packages that pyproject.toml asks for on this system, and those to build and to test."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.match(r"[A-Za-z0-9_.-]+", line) for line in asked if "Linux" not in line or sys.platform == "linux"]
    return [*(name[0] for name in names if name), *BEYOND]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
