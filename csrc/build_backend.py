"""The build backend that pyproject.toml names: setuptools, plus finding the headers of torch.

torch is not a build requirement: pip would download a second one, gigabytes on a machine with a GPU, into its isolated
build. The headers of the torch that is already installed serve. Only when there is none does the build ask for it.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (the hooks that are not changed here)

ROOT = Path(__file__).resolve().parents[1]
MODES = ("auto", "off", "require")
HEADER = Path("torch", "include", "torch", "csrc", "stable", "library.h")
Settings = Mapping[str, Any] | None


def native_mode(environment: Mapping[str, str] = os.environ) -> str:
    """Return what SETR_FAST_NATIVE asks for: ``auto``, ``off`` or ``require``."""
    mode = environment.get("SETR_FAST_NATIVE", "") or "auto"
    if mode not in MODES:
        raise SystemExit(f"setup: SETR_FAST_NATIVE must be {', '.join(MODES[:-1])} or {MODES[-1]}, got {mode!r}")
    return mode


def find_compiler(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the C++ compiler that CMake would take, or None."""
    named = environment.get("CXX", "").split()
    for name in named[:1] or ("c++", "g++", "clang++"):
        if found := shutil.which(name, path=environment.get("PATH")):
            return found
    return None


def package_folders() -> list[Path]:
    """Return the folders where the target environment keeps its packages, nearest first.

    Inside pip's isolated build, sysconfig still names the environment that is installed into. ``sys.path`` holds the
    build's own packages, where torch lies if `get_requires_for_build_*` had to ask for it.
    """
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
    if _sees_system_packages(Path(sys.prefix)):
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        folders += [sysconfig.get_path("purelib", vars=base), *site.getsitepackages([sys.base_prefix])]
        folders += [site.getusersitepackages()]
    return [Path(folder) for folder in dict.fromkeys(filter(None, folders))]


def _sees_system_packages(prefix: Path) -> bool:
    settings = prefix / "pyvenv.cfg"
    if not settings.is_file():
        return True  # no virtual environment
    return re.search(r"(?mi)^include-system-site-packages\s*=\s*true\s*$", settings.read_text()) is not None


def find_torch(folders: Iterable[Path] | None = None) -> Path | None:
    """Return the include folder of an installed torch, without importing it."""
    for folder in package_folders() if folders is None else folders:
        if (folder / HEADER).is_file():
            return folder / "torch" / "include"
    return None


def torch_requirement(root: Path = ROOT) -> str:
    """Return the torch to compile against when none is installed: the pinned one, else what the project depends on."""
    constraints = root / "constraints.txt"
    if constraints.is_file():
        for line in constraints.read_text(encoding="utf-8").splitlines():
            if re.match(r"torch\s*==", line):
                return line.split("#")[0].strip()
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next((d for d in project["dependencies"] if re.match(r"torch\b(?!-)", d)), "torch>=2.11")


def _extra_requirements() -> list[str]:
    if native_mode() == "off" or find_compiler() is None or find_torch() is not None:
        return []
    return [torch_requirement()]


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return setuptools' requirements for a wheel and, where none is installed, torch."""
    return [*_setuptools.get_requires_for_build_wheel(config_settings), *_extra_requirements()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """Return setuptools' requirements for an editable install and, where none is installed, torch."""
    return [*_setuptools.get_requires_for_build_editable(config_settings), *_extra_requirements()]
