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
BEYOND = ("pytest",)
"""Needed to test, beside what the package itself asks for."""
OPTIONAL = ("xformers",)
TOOLS = ("nvcc",)


def main() -> int:
    """Print what is missing; exit code 1 if something is that the session cannot do without."""
    asked = wanted()
    missing = [name for name in asked if not _installed(name)]
    old = [(name, version) for name, least in asked.items() if (version := _older(name, least))]
    tools = [tool for tool in TOOLS if shutil.which(tool) is None and not Path("/usr/local/cuda/bin", tool).exists()]
    for name in tools:
        print(f"{name}: not on PATH nor in /usr/local/cuda/bin")
    for name in missing:
        print(f"{name}: not installed" + ("; its side of comparisons will be missing" if name in OPTIONAL else ""))
    for name, version in old:
        print(f"{name}: {version} is installed, {asked[name]} or newer is needed")
    missing += [name for name, _ in old]
    if missing:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        print(
            "where there is a network: pip download --no-deps --only-binary=:all: "
            f"--python-version {version} --platform manylinux_2_28_x86_64 -d carry {' '.join(missing)}"
        )
    else:
        print("nothing is missing" if not tools else "no package is missing")
    return 1 if tools or set(missing) - set(OPTIONAL) else 0


def wanted() -> dict[str, str]:
    """Return the packages that pyproject.toml asks for on this system, to build too, and those to test: name to oldest
    version, empty where any will do."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    names = [re.match(r"([A-Za-z0-9_.-]+)(?:>=([\d.]+))?", line) for line in asked if _is_for_here(line)]
    return {name[1]: name[2] or "" for name in names if name} | dict.fromkeys(BEYOND, "")


def _is_for_here(requirement: str) -> bool:
    return "Linux" not in requirement or sys.platform == "linux"


def _older(name: str, least: str) -> str:
    """Return the version that is installed where it is older than ``least``, else nothing."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.split("+")[0])]

    return version if numbers(version) < numbers(least) else ""


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
