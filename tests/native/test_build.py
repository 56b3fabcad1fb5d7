"""setup.py and the build backend: finding torch, SETR_FAST_NATIVE, machines without a compiler or nvcc."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    pytest.importorskip("setuptools")
    sys.path.insert(0, str(ROOT / "csrc"))
    return importlib.import_module("build_backend")


@pytest.fixture(scope="module")
def setup(backend: ModuleType) -> ModuleType:
    return load(ROOT / "setup.py", "setr_fast_setup")


@pytest.fixture
def build(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Run the build step in a folder of the test, with nothing compiled unless a test patches it in."""

    def run(mode: str) -> Path:
        from setuptools import Distribution

        monkeypatch.setenv("SETR_FAST_NATIVE", mode)
        command = setup.BuildNative(Distribution({"name": "setr_fast", "version": "0"}))
        command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
        command.run()
        return tmp_path / "lib" / "setr_fast"

    return run


def test_mode_is_auto_unless_stated(backend: ModuleType) -> None:
    assert backend.native_mode({}) == "auto"
    assert backend.native_mode({"SETR_FAST_NATIVE": ""}) == "auto"
    for mode in ("auto", "off", "require"):
        assert backend.native_mode({"SETR_FAST_NATIVE": mode}) == mode


@pytest.mark.parametrize("value", ["on", "Auto", "1"])
def test_another_mode_is_an_error(backend: ModuleType, value: str) -> None:
    with pytest.raises(SystemExit, match=f"SETR_FAST_NATIVE must be auto, off or require, got '{value}'"):
        backend.native_mode({"SETR_FAST_NATIVE": value})


def test_old_setuptools_is_one_line(setup: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert f'"setuptools>={setup.SETUPTOOLS}"' in (ROOT / "pyproject.toml").read_text()
    with pytest.raises(SystemExit):
        setup.refuse_old_setuptools("65.5.0")
    assert capsys.readouterr().err.splitlines() == [
        "setr_fast: setuptools must be 77 or newer, got 65.5.0; pip install -U setuptools"
    ]
    setup.refuse_old_setuptools("82.0.1.post3")


def test_headers_are_those_of_the_installed_torch_which_is_not_imported() -> None:
    code = "import sys, build_backend as b; print(b.find_torch()); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "csrc")},
    )
    assert done.returncode == 0, done.stderr
    installed = importlib.util.find_spec("torch")
    assert installed
    assert installed.origin
    assert Path(done.stdout.strip()).samefile(Path(installed.origin).parent / "include")


def test_torch_without_stable_headers_does_not_count(backend: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "old" / "torch" / "include").mkdir(parents=True)
    assert backend.find_torch([tmp_path / "old", tmp_path / "none"]) is None
    header = tmp_path / "new" / backend.HEADER
    header.parent.mkdir(parents=True)
    header.touch()
    assert backend.find_torch([tmp_path / "old", tmp_path / "new"]) == tmp_path / "new" / "torch" / "include"


def test_system_packages_count_only_where_the_environment_sees_them(backend: ModuleType, tmp_path: Path) -> None:
    for text, sees in (
        ("include-system-site-packages = true\n", True),
        ("include-system-site-packages = false\n", False),
    ):
        (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\n" + text)
        assert backend._sees_system_packages(tmp_path) is sees


def test_required_torch_is_the_pinned_one_else_the_projects(backend: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torchmetrics", "torch>=2.11"]\n')
    assert backend.torch_requirement(tmp_path) == "torch>=2.11"
    (tmp_path / "constraints.txt").write_text("torchmetrics==1\nnumpy==2\ntorch==2.13.0  # tested\n")
    assert backend.torch_requirement(tmp_path) == "torch==2.13.0"


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_torch_is_asked_for_only_when_it_is_needed_and_absent(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    monkeypatch.setattr(backend._setuptools, hook, lambda settings=None: ["base"])
    monkeypatch.setattr(backend, "find_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(backend, "find_torch", lambda: Path("/somewhere"))
    requirements = getattr(backend, hook)
    assert requirements() == ["base"]
    monkeypatch.setattr(backend, "find_torch", lambda: None)
    assert requirements()[0] == "base"
    assert requirements()[1].startswith("torch")
    monkeypatch.setattr(backend, "find_compiler", lambda: None)
    assert requirements() == ["base"]
    monkeypatch.setattr(backend, "find_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(backend, "native_mode", lambda: "off")
    assert requirements() == ["base"]


def test_compiler_is_looked_up_as_cmake_does(backend: ModuleType, tmp_path: Path) -> None:
    assert backend.find_compiler({"PATH": str(tmp_path)}) is None
    mine = tmp_path / "my++"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    assert backend.find_compiler({"PATH": str(tmp_path), "CXX": "my++ -m64"}) == str(mine)


def test_no_compiler_costs_the_extension_not_the_installation(
    setup: ModuleType, build: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(setup, "find_compiler", lambda: None)
    monkeypatch.setattr(setup, "find_nvcc", lambda: "/usr/bin/nvcc")
    folder = build("auto")
    assert capfd.readouterr().err.splitlines() == [
        "setr_fast: no extension, all ops run on PyTorch: there is no C++ compiler; install one, for example g++"
    ]
    assert not list(folder.iterdir())
    with pytest.raises(SystemExit, match="SETR_FAST_NATIVE=require, but there is no C\\+\\+ compiler"):
        build("require")


def test_a_failing_build_removes_an_older_library(
    setup: ModuleType, build: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **variables: str) -> Path:
        raise setup.BuildError("cmake failed: error: nonsense")

    folder = tmp_path / "lib" / "setr_fast"
    folder.mkdir(parents=True)
    for mode in ("auto", "off"):
        for name in ("_native.cpython-399-x86_64-linux-gnu.so", "_cuda.so", setup.OPS_LIBRARY, "other.so"):
            (folder / name).write_bytes(b"old")
        monkeypatch.setattr(setup, "compile_part", fail)
        build(mode)
        assert [p.name for p in folder.iterdir()] == ["other.so"]
    with pytest.raises(SystemExit, match="nonsense"):
        build("require")


def test_no_nvcc_or_a_failing_one_leaves_the_cpu_part(
    setup: ModuleType, build: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def compile_cpu(part: str, output: Path, **variables: str) -> Path:
        if part == "cuda":
            raise setup.BuildError("nvcc is broken")
        assert variables["SETR_FAST_CUDA"] == "not built"
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(b"library")
        output.with_name(setup.OPS_LIBRARY).write_bytes(b"library")
        return output

    monkeypatch.setattr(setup, "compile_part", compile_cpu)
    for nvcc, line in ((None, "no nvcc found"), ("/usr/bin/nvcc", "nvcc is broken")):
        monkeypatch.setattr(setup, "find_nvcc", lambda found=nvcc: found)
        assert sorted(p.name.split(".")[0] for p in build("auto").iterdir()) == ["_native", "libsetr_fast_ops"]
        expected = f"setr_fast: {line}: the CUDA library was not built (every op has CPU and PyTorch paths)"
        assert expected in capfd.readouterr().err.splitlines()
    with pytest.raises(SystemExit, match="nvcc is broken"):
        build("require")


def test_source_distribution_holds_every_file_of_the_build(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: dict = {}
    source = (ROOT / "setup.py").read_text()
    monkeypatch.setattr("setuptools.setup", lambda **arguments: listed.update(arguments))
    exec(compile(source, str(ROOT / "setup.py"), "exec"), {"__name__": "__main__", "__file__": str(ROOT / "setup.py")})
    (extension,) = listed["ext_modules"]
    held = {*extension.sources, *extension.depends}
    needed = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert needed <= held
    assert "CMakeLists.txt" in held


@pytest.mark.slow
def test_pip_installs_a_package_whose_library_registers_ops(backend: ModuleType, tmp_path: Path) -> None:
    for needed in ("pybind11", "cmake", "ninja"):
        if importlib.util.find_spec(needed) is None and shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed; pip's isolated build would download it")
    if backend.find_compiler() is None or importlib.util.find_spec("pip") is None:
        pytest.skip("no C++ compiler or no pip")
    tree, target = tmp_path / "tree", tmp_path / "target"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, tree / name)
    (tree / "README.md").touch()
    leave_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "csrc", tree / "csrc", ignore=leave_out)
    shutil.copytree(ROOT / "setr_fast", tree / "setr_fast", ignore=leave_out)
    pip = [sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-index", "--no-build-isolation"]
    environment = {**os.environ, "SETR_FAST_NATIVE": "require", "SETR_FAST_CUDA_ARCHS": "90-real"}
    done = subprocess.run(
        [*pip, "--target", str(target), str(tree)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    code = (
        "import torch, setr_fast, setr_fast.ops\n"
        "from setr_fast.ops import _native, OPS\n"
        f"assert setr_fast.__file__.startswith({str(target)!r}), setr_fast.__file__\n"
        "assert _native.load() is not None, _native.reason()\n"
        "ids = torch.zeros(2, 2, dtype=torch.uint8)\n"
        "assert torch.ops.setr_fast_native.confusion_matrix(ids, ids, 1, 255).tolist() == [[4]]"
    )
    environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
