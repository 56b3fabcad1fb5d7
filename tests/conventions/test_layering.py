"""Who may import whom inside the package; the table is the rule."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "setr_fast"
BASE = {"errors", "shapes", "files", "fields"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "measure": set(),
    "verdict": {"errors", "measure", "ops"},
    "adopt": {"measure", "ops", "verdict"},
    "shapes": set(),
    "files": {"errors"},
    "fields": {"errors"},
    "ops": BASE | {"ops"},
    "nn": BASE | {"ops", "nn"},
    "loss": BASE | {"ops", "loss"},
    "metrics": BASE | {"ops", "metrics"},
    "models": BASE | {"ops", "nn", "loss", "models"},
    "checkpoints": BASE | {"ops", "nn", "models", "checkpoints"},
    "data": BASE | {"ops", "data"},
    "precision": BASE | {"ops", "nn", "models", "precision"},
    "engine": BASE | {"ops", "data", "models", "checkpoints", "metrics", "loss", "precision", "engine"},
    "export": BASE | {"ops", "nn", "models", "checkpoints", "engine", "export"},
    "train": BASE | {"ops", "nn", "data", "models", "checkpoints", "metrics", "loss", "engine", "train", "config"},
    "config": BASE | {"data", "models", "train", "engine"},
}
DATA_FLOW: list[set[str]] = [  # the rooms and files of data/, upstream first; those of one step may know each other
    {"faults", "palette", "draws", "distort"},
    {"formats", "classes"},
    {"layouts", "options"},
    {"reading", "masks"},
    {"scenes", "shards", "source"},
    {"transforms", "frequencies", "balance", "loader", "checks", "prepare"},
]
VERBS = {"eval", "predict", "compare", "consolidate", "convert", "plan", "bench", "doctor"}
FREE = {"cli", "report", "__init__", "__main__"} | VERBS
EXCEPTIONS = {("models/model.py", "engine")}  # SegmentationModel.predict hands itself to the predictor
LIGHT = [
    *(f"cli/{p.name}" for p in sorted((PACKAGE / "cli").glob("*.py"))),
    "config.py",
    "errors.py",
    "models/catalog.py",
    "models/spec.py",
    *(f"{p}/options.py" for p in ("data", "models", "checkpoints", "metrics", "engine", "export", "train")),
]


def _modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "kernels" not in p.relative_to(PACKAGE).parts)


def _imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "setr_fast":
                found |= {f"setr_fast.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_imports_only_the_rooms_below_it(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    if room in FREE or relative.name == "__main__.py":
        return
    assert room in ALLOWED, f"{relative}: a new room; add it to the table in this test and to CONTRIBUTING.md"
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "setr_fast" or len(parts) == 1:
            continue
        target = parts[1]
        allowed = target in ALLOWED[room] or (str(relative), target) in EXCEPTIONS or target == "__version__"
        assert allowed, f"{relative} imports setr_fast.{target}; {room} may import {sorted(ALLOWED[room])}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_data_knows_only_what_lies_upstream(path: Path) -> None:
    place = {name: step for step, names in enumerate(DATA_FLOW) for name in names}
    relative = path.relative_to(PACKAGE / "data")
    room = relative.parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    assert room in place, f"data/{relative}: a new room; add it to DATA_FLOW"
    found = {name.split(".")[2] for name in _imports(path) if name.startswith("setr_fast.data.")}
    later = sorted(name for name in found if place[name] > place[room])
    assert not later, f"data/{relative} imports {later}, which come after it in DATA_FLOW"


def test_a_forbidden_import_is_seen() -> None:
    assert "setr_fast.models.model" in _imports(PACKAGE / "train" / "loop.py")
    assert "models" not in ALLOWED["data"]


@pytest.mark.parametrize("name", LIGHT)
def test_what_help_reads_imports_no_torch_or_numpy(name: str) -> None:
    heavy = {m.split(".")[0] for m in _imports(PACKAGE / name, top_level_only=True)} & {"torch", "numpy", "PIL", "rich"}
    assert not heavy


def test_kernels_and_cuda_sources_know_nothing_of_the_package() -> None:
    root = PACKAGE.parent
    for path in (root / "kernels").glob("*.py"):
        assert not any(m.split(".")[0] == "setr_fast" for m in _imports(path)), path
    for path in (root / "csrc" / "cuda").glob("*.cu"):
        assert "#include <torch" not in path.read_text(), f"{path}: kernels are compiled without torch"


def test_kernels_folder_is_a_namespace_reached_through_the_package() -> None:
    link = PACKAGE / "kernels"
    assert link.is_symlink()
    assert link.resolve() == PACKAGE.parent / "kernels"
    assert not (PACKAGE.parent / "kernels" / "__init__.py").exists(), "it would shadow other packages named kernels"
