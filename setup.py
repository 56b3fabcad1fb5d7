"""Packages and one CMake step; everything else is in pyproject.toml and csrc/build_backend.py.

SETR_FAST_NATIVE=auto|off|require says whether csrc/ is compiled; SETR_FAST_CUDA_ARCHS="80-real;90" for which cards.
By hand, in an environment that has torch and what pyproject.toml builds with: ``python setup.py build_ext --inplace``.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, __version__, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
from build_backend import find_compiler, find_torch, native_mode  # noqa: E402

CUDA_ARCHS = "80-real;90"  # machine code for A100 and H100/H200, portable code for later cards
SETUPTOOLS = 77  # the first that reads pyproject.toml's licence; by hand nothing else asks for it
DATA_FOLDERS = {
    "setr_fast.recipes": ["*.toml"],
    "setr_fast.data.tables": ["*.csv"],
    "setr_fast.export.project_files": ["*"],
}
CUDA_LIBRARY = "_cuda.so"
OPS_LIBRARY = "libsetr_fast_ops.so"  # kernels for C++ programs; the build of the module leaves it beside it


class BuildError(Exception):
    """A part cannot be compiled; the text is the one line that the user sees."""


def say(line: str) -> None:
    """Print a line that pip shows with -v, and always when the build fails."""
    print(f"setr_fast: {line}", file=sys.stderr, flush=True)


def tool(name: str) -> str:
    """Return the path of cmake or ninja: of the Python package of that name, else from PATH."""
    try:
        package = importlib.import_module(name)
        found = shutil.which(name, path=getattr(package, "CMAKE_BIN_DIR", getattr(package, "BIN_DIR", None)))
    except ImportError:
        found = None
    if found := found or shutil.which(name):
        return found
    raise BuildError(f"{name} is not installed; pip install {name}")


def find_nvcc() -> str | None:
    """Return the CUDA compiler, or None."""
    folders = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    named = [str(Path(folder, "bin")) for folder in folders if folder]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(named))


def compile_part(part: str, output: Path, **variables: str) -> Path:
    """Run CMake for one part of csrc/ and return ``output``, the library."""
    build = output.parent
    torch_include = find_torch()
    if find_compiler() is None:
        raise BuildError("there is no C++ compiler; install one, for example g++")
    if torch_include is None:
        raise BuildError("the headers of torch 2.11 or later were not found; pip install torch first")
    import pybind11

    settings = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "SETR_FAST_PART": part,
        "SETR_FAST_OUTPUT": output.as_posix(),
        "TORCH_INCLUDE": torch_include.as_posix(),
        "PYTHON_INCLUDE": sysconfig.get_path("include"),
        "PYBIND11_INCLUDE": pybind11.get_include(),
        **variables,
    }
    build.mkdir(parents=True, exist_ok=True)
    (build / "CMakeCache.txt").unlink(missing_ok=True)  # it holds paths of an isolated build that is gone
    configure = [tool("cmake"), "-G", "Ninja", "-S", str(ROOT), "-B", str(build)]
    for command in ([*configure, *(f"-D{k}={v}" for k, v in settings.items())], [tool("cmake"), "--build", str(build)]):
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        print(done.stdout, flush=True)
        if done.returncode:
            errors = [line.strip() for line in done.stdout.splitlines() if "rror" in line]
            raise BuildError(f"{Path(command[0]).name} failed: {(errors or ['see its output above'])[0]}")
    return output


def install(folder: Path, *libraries: Path) -> None:
    """Put the libraries into the package folder and remove those of an earlier build that are not among them."""
    folder.mkdir(parents=True, exist_ok=True)
    for library in libraries:
        fresh = folder / f".{library.name}.new"  # never write into a file that a running process has mapped
        shutil.copy2(library, fresh)
        os.replace(fresh, folder / library.name)
    wanted = {library.name for library in libraries}
    for stale in (*folder.glob("_native.*.so"), folder / CUDA_LIBRARY, folder / OPS_LIBRARY):
        if stale.name not in wanted:
            stale.unlink(missing_ok=True)


class BuildNative(build_ext):
    """Builds setr_fast/_native and, where nvcc exists, setr_fast/_cuda.so beside it."""

    def run(self) -> None:
        """Compile as SETR_FAST_NATIVE says; in auto mode a failure costs the extension, not the installation."""
        here = ROOT / "setr_fast" if self.inplace or self.editable_mode else Path(self.build_lib, "setr_fast").resolve()
        mode = native_mode()
        if mode == "off":
            say("SETR_FAST_NATIVE=off: no extension, all ops run on PyTorch")
            install(here)
            return
        build = Path(self.build_temp).resolve()
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        try:
            cuda, archs = self.build_cuda(build / "cuda" / CUDA_LIBRARY, required=mode == "require")
            facts = {
                "SETR_FAST_VERSION": self.distribution.get_version(),
                "SETR_FAST_CUDA": "built" if cuda else "not built",
                "SETR_FAST_CUDA_ARCHS": archs,
            }
            module = compile_part("cpu", build / "cpu" / f"_native{suffix}", **facts)
        except BuildError as error:
            if mode == "require":
                raise SystemExit(f"setr_fast: SETR_FAST_NATIVE=require, but {error}") from error
            say(f"no extension, all ops run on PyTorch: {error}")
            install(here)
            return
        install(here, module, module.with_name(OPS_LIBRARY), *filter(None, [cuda]))

    def build_cuda(self, output: Path, required: bool) -> tuple[Path | None, str]:
        """Compile the CUDA library; return it and the architectures it holds, or None."""
        without = "the CUDA library was not built (every op has CPU and PyTorch paths)"
        nvcc = find_nvcc()
        if nvcc is None:
            say(f"no nvcc found: {without}")
            return None, ""
        archs = os.environ.get("SETR_FAST_CUDA_ARCHS", CUDA_ARCHS)
        try:
            return compile_part("cuda", output, CMAKE_CUDA_COMPILER=nvcc, SETR_FAST_CUDA_ARCHS=archs), archs
        except BuildError as error:
            if required or find_compiler() is None or find_torch() is None:
                raise  # the CPU part fails for the same reason: one line, not two
            say(f"{error}: {without}")
            return None, ""

    def get_outputs(self) -> list[str]:
        """Return nothing: what could be compiled is only known after the fact, and lies in the package folder."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """Return nothing, see get_outputs."""
        return {}


def sources(*patterns: str) -> list[str]:
    """Return files below the root, for the source distribution."""
    return sorted(p.relative_to(ROOT).as_posix() for pattern in patterns for p in ROOT.glob(pattern))


def refuse_old_setuptools(version: str = __version__) -> None:
    """End with one line where setuptools would end with a page about a licence."""
    if int(version.split(".")[0]) < SETUPTOOLS:
        say(f"setuptools must be {SETUPTOOLS} or newer, got {version}; pip install -U setuptools")
        raise SystemExit(1)


if __name__ == "__main__":
    native_mode()
    refuse_old_setuptools()
    # A link to kernels/, which has no __init__.py so that it shadows nobody's package of that name.
    kernels = ["setr_fast.kernels"] if (ROOT / "setr_fast" / "kernels").is_dir() else []
    setup(
        packages=[*find_packages(include=["setr_fast", "setr_fast.*"]), *DATA_FOLDERS, *kernels],
        package_data=DATA_FOLDERS,
        ext_modules=[
            Extension(
                "setr_fast._native",
                sources=sources("csrc/**/*.cpp"),
                depends=sources("csrc/**/*.h", "csrc/**/*.cu", "csrc/*.py", "CMakeLists.txt", "constraints.txt"),
            )
        ],
        cmdclass={"build_ext": BuildNative},
    )
