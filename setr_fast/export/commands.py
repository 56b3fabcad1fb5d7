"""What `export` does once its arguments are read: write, compare with the model in Python, tell in a receipt."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from setr_fast import __version__
from setr_fast.checkpoints.certificate import file_sha256
from setr_fast.engine.checkpoints import load_checkpoint, weights_sha256
from setr_fast.errors import BackendError, ConfigError
from setr_fast.export.agreement import agreement
from setr_fast.export.formats import ENDINGS, require, write
from setr_fast.export.options import ExportConfig
from setr_fast.export.program import constraints
from setr_fast.export.project import MODEL
from setr_fast.files import atomic_file, atomic_folder, atomic_write, make_parents
from setr_fast.models.model import SegmentationModel

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def export_command(checkpoint: Path, out: Path, config: ExportConfig) -> dict[str, Any]:
    """Write ``out`` and beside it (cpp: in it) a receipt; print what agrees. Nothing is left of an export that fails.

    Raises: BackendError if a package is missing, or the result agrees on fewer pixels than ``least_agreement``.
    """
    _check_target(out, config)
    require(config.format)
    model, folder = load_checkpoint(checkpoint)
    receipt = export_model(model, out, config, weights=weights_sha256(folder))
    told = receipt["agreement"]
    if told is not None:
        print(
            f"{100 * told['agreement']:.4f}% of {told['pixels']} pixels as in Python, over {len(told['sizes'])} sizes; "
            f"{told['different']} differ, of which {told['ties']} are ties"
        )
    print(f"{checkpoint} -> {out}, receipt {receipt_path(out, config)}")
    return receipt


def export_model(
    model: SegmentationModel, out: Path, config: ExportConfig, *, weights: str | None = None
) -> dict[str, Any]:
    """Write a model that is loaded; return the receipt. ``weights``: the hash of the file it came from."""
    model = model.eval()
    started = time.perf_counter()
    with _target(out, config) as temporary:
        run = write(model, config, temporary)
        seconds = time.perf_counter() - started
        told = agreement(model, run, config.sizes) if config.sizes else None
        if told is not None and told["different"] - told["ties"] > (1 - config.least_agreement) * told["pixels"]:
            raise BackendError(
                f"export: pixels must agree with the model in Python for a share of {config.least_agreement}, got "
                f"{told['agreement']:.6f} ({told['different']} of {told['pixels']} differ, {told['ties']} of them "
                "ties); --least-agreement takes less"
            )
        file = temporary / MODEL if config.format == "cpp" else temporary
        receipt = _receipt(model, config, file, told, seconds, weights)
        if config.format == "cpp":
            (temporary / "receipt.json").write_text(_json(receipt))
    if config.format != "cpp":
        atomic_write(receipt_path(out, config), _json(receipt))
    return receipt


def receipt_path(out: Path, config: ExportConfig) -> Path:
    """Return where the receipt of an export lies."""
    return out / "receipt.json" if config.format == "cpp" else out.with_name(out.name + ".receipt.json")


def _receipt(
    model: SegmentationModel,
    config: ExportConfig,
    file: Path,
    told: dict[str, Any] | None,
    seconds: float,
    weights: str | None,
) -> dict[str, Any]:
    dtype = "uint8" if model.spec.num_classes <= 256 else "int16, to be read as uint16"
    return {
        "format": "setr_fast export receipt",
        "version": 1,
        "exported": config.format,
        "kernels": config.kernels,
        "input": "pictures: uint8 [B, H, W, 3], RGB, upright",
        "output": f"classes: {dtype} [B, H, W]",
        "constraints": constraints(model.spec, config.format),
        "file": {"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)},
        "weights_sha256": weights,
        "model": model.spec.to_dict(),
        "agreement": told,
        "seconds": round(seconds, 2),
        "versions": {"setr_fast": __version__, "python": platform.python_version(), **_versions()},
        "machine": {"cpu": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability()},
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def _check_target(out: Path, config: ExportConfig) -> None:
    ending, folder = ENDINGS[config.format], config.format == "cpp"
    if not folder and out.suffix != ending:
        raise ConfigError(f"out: must end in {ending} for {config.format}, got {out.name}; --out {out.stem}{ending}")
    if out.is_dir() and (not folder or (any(out.iterdir()) and not (out / MODEL).is_file())):
        raise ConfigError(f"out: must be a new {'folder' if folder else 'file'}, got the folder {out}; name another")
    if folder and out.exists() and not out.is_dir():
        raise ConfigError(f"out: must be a folder for cpp, got the file {out}; name another")
    make_parents(out, "out")


@contextmanager
def _target(out: Path, config: ExportConfig) -> Iterator[Path]:
    """Yield a place of the final name in a temporary folder; what is there in the end becomes ``out``."""
    if config.format == "cpp":
        with atomic_folder(out) as folder:
            yield folder
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".setr_fast-", dir=out.parent) as folder, atomic_file(out) as temporary:
        # The exporters read the name of the file they write, which must not be atomic_file's.
        yield Path(folder, out.name)
        os.replace(Path(folder, out.name), temporary)
