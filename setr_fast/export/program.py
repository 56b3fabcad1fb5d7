"""A model as a program of ``torch.export``: one graph for every height, width and batch that the model takes."""

from __future__ import annotations

import copyreg
import importlib
import warnings
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from setr_fast.errors import BackendError
from setr_fast.export.deployed import Deployed
from setr_fast.export.kernels import kernels
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.ops import _native


def program_of(model: SegmentationModel, name: str, *, compiled: bool = False) -> ExportedProgram:
    """Return the program of a model: uint8 ``pictures`` [B, H, W, 3] -> classes [B, H, W].

    ``name`` and ``compiled`` say which kernels it calls.
    Raises: BackendError if these are not compiled here.
    """
    if name == "own" and compiled and (missing := _native.missing("cpu")):
        raise BackendError(f"export: own kernels must be compiled, got none: {missing}; --kernels portable needs none")
    deployed = Deployed(model, kernels(name, compiled=compiled))
    height, width = example_size(model.spec)
    pictures = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    sides = Dim.STATIC if fixed_size(model.spec) else Dim.DYNAMIC
    # A size of 0 or 1 is a size as any other: without this, PyTorch compiles for 2 and more.
    shape_config: Any = importlib.import_module("torch.fx.experimental._config")
    with shape_config.patch(backed_size_oblivious=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=copyreg.__name__)
        dynamic = {"pictures": {0: Dim.DYNAMIC, 1: sides, 2: sides}}
        program = torch.export.export(deployed, (pictures,), dynamic_shapes=dynamic)
    ours = sorted({str(node.target) for node in program.graph.nodes if "setr_fast" in str(node.target)})
    assert name == "own" or not ours, f"a portable program must hold no op of this package, got {', '.join(ours)}"
    return program


def fixed_size(spec: ModelSpec) -> tuple[int, int] | None:
    """Return the only size that a model takes whose positions cannot be resized, else None."""
    if spec.pos_resize != "none":
        return None
    return spec.pos_grid[0] * spec.patch_size, spec.pos_grid[1] * spec.patch_size


def least_size(spec: ModelSpec) -> int:
    """Return the least height and width of a picture, in pixels."""
    return 1 if spec.fit == "pad" else spec.patch_size


def example_size(spec: ModelSpec) -> tuple[int, int]:
    """Return a size that no rule singles out: sides differ, none is a multiple of the patch or the table's."""
    if fixed := fixed_size(spec):
        return fixed
    return (spec.pos_grid[0] + 2) * spec.patch_size - 3, (spec.pos_grid[1] + 3) * spec.patch_size - 5


def constraints(spec: ModelSpec, kind: str) -> list[str]:
    """Say in words which pictures a program takes, and where it runs."""
    if fixed := fixed_size(spec):
        sides = f"height and width are {fixed[0]} and {fixed[1]}: the model's positions are not resized (pos_resize)"
    else:
        sides = f"height and width are {least_size(spec)} or more"
    said = [sides, "batch is 1 or more", "one pass over the picture at its own size: no windows, no resize before"]
    if kind in ("aoti", "cpp"):
        said.append("compiled for the instructions of the machine that exported it; another kind of CPU needs its own")
    if kind != "onnx":
        said.append("runs on a CPU")
    return said
