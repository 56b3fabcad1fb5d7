"""The C++ project that ``--format cpp`` writes around an AOTInductor package."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from setr_fast.errors import BackendError

MODEL = "model.pt2"
OPS_LIBRARY = "libsetr_fast_ops.so"
SOURCES = ("CMakeLists.txt", "main.cpp", "pictures.h", "README.md")


def write_project(folder: Path, *, own_kernels: bool) -> None:
    """Copy sources and build file into ``folder``, and the library of our kernels where the package calls them."""
    files = resources.files("setr_fast.export").joinpath("project_files")
    for name in SOURCES:
        (folder / name).write_bytes(files.joinpath(name).read_bytes())
    if own_kernels:
        library = ops_library()
        shutil.copyfile(library, folder / library.name)


def ops_library() -> Path:
    """Return the library that gives our kernels to C++ programs.

    Raises: BackendError where it is not compiled.
    """
    library = Path(__file__).resolve().parents[1] / OPS_LIBRARY
    if not library.is_file():
        raise BackendError(
            f"export: own kernels must be compiled for C++, got no {library.name}; run `pip install -v -e .`, which "
            "says why, or take --kernels portable"
        )
    return library
