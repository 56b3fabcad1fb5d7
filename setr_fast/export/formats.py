"""Writing a program in each format, and running what was written, as its users do."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setr_fast.errors import BackendError
from setr_fast.export.agreement import Run
from setr_fast.export.options import ExportConfig
from setr_fast.export.program import program_of
from setr_fast.export.project import MODEL, write_project
from setr_fast.models.model import SegmentationModel

INPUT, OUTPUT = "pictures", "classes"
ONNX_OPSET = 20
ENDINGS = {"torch_export": ".pt2", "aoti": ".pt2", "onnx": ".onnx", "cpp": ""}
_ZIP_WRITER = "PytorchStreamWriter failed writing"
"""How torch puts that the system took no more bytes; it does not say why."""
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


def require(kind: str) -> None:
    """Raise BackendError where a format's packages or compiler are not there."""
    missing = [name for name in _PACKAGES.get(kind, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f"export: format {kind} needs {', '.join(missing)}, which is not installed; pip install 'setr_fast[export]'"
        )
    if kind in ("aoti", "cpp"):
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise BackendError(f"export: format {kind} needs a C++ compiler, got no {compiler}; install g++ or set CXX")


def write(model: SegmentationModel, config: ExportConfig, target: Path) -> Run:
    """Write a model into the file (cpp: the folder) ``target`` and return what runs it from there.

    Raises: OSError where the disk is full.
    """
    with _quiet():
        try:
            return _WRITERS[config.format](model, config, target)
        except RuntimeError as error:
            if _ZIP_WRITER not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error


def _torch_export(model: SegmentationModel, config: ExportConfig, target: Path) -> Run:
    torch.export.save(program_of(model, config.kernels), target)
    return _on_tensors(torch.export.load(target).module())


def _aoti(model: SegmentationModel, config: ExportConfig, target: Path) -> Run:
    program = program_of(model, config.kernels, compiled=True)
    torch._inductor.aoti_compile_and_package(program, package_path=str(target))
    return _on_tensors(torch._inductor.aoti_load_package(str(target)))


def _onnx(model: SegmentationModel, config: ExportConfig, target: Path) -> Run:
    exported: Any = torch.onnx.export(
        program_of(model, config.kernels), (), dynamo=True, opset_version=ONNX_OPSET, verbose=False
    )
    graph = exported.model.graph
    for value, name in ((graph.inputs[0], INPUT), (graph.outputs[0], OUTPUT)):
        value.name = name
        value.shape = type(value.shape)(["batch", *_sides(value.shape), *([3] if name == INPUT else [])])
    exported.save(str(target), external_data=False)  # one file, up to the 2 GiB that ONNX allows
    import onnxruntime

    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    return lambda pictures: session.run([OUTPUT], {INPUT: pictures})[0]


def _sides(shape: Any) -> list[Any]:
    return [side if isinstance(side, int) else name for side, name in zip(shape[1:3], ("height", "width"), strict=True)]


def _cpp(model: SegmentationModel, config: ExportConfig, target: Path) -> Run:
    run = _aoti(model, config, target / MODEL)
    write_project(target, own_kernels=config.kernels == "own")
    return run


_WRITERS: dict[str, Callable[[SegmentationModel, ExportConfig, Path], Run]] = {
    "torch_export": _torch_export,
    "aoti": _aoti,
    "onnx": _onnx,
    "cpp": _cpp,
}


def _on_tensors(function: Callable[..., Any]) -> Run:
    def run(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: torch.Tensor = function(torch.from_numpy(pictures))
        return found.numpy() if found.dtype is torch.uint8 else found.numpy().view(np.uint16)

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporters tell of their own insides; what goes wrong is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
