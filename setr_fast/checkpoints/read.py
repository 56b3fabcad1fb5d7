"""Any weights file in, plain tensors and plain metadata out; nothing in the file is ever run.

A file's format is told by its content, never by its name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from torch import Tensor

from setr_fast.checkpoints.archive import read_directory
from setr_fast.checkpoints.arrays import read_npz, read_paddle
from setr_fast.checkpoints.faults import AGAIN, DISTRUST, Unusable, shortened
from setr_fast.checkpoints.reading import most_bytes
from setr_fast.checkpoints.safetensors_file import read_safetensors
from setr_fast.checkpoints.torch_file import LEGACY_START, read_legacy, read_zip
from setr_fast.errors import CheckpointError
from setr_fast.models.store import CONFIG_FILE, FORMAT, WEIGHTS_FILE, model_folder

Kind = Literal["torch", "paddle", "npz", "safetensors", "native"]
_SUFFIXES = (".pth", ".pt", ".pdparams", ".safetensors", ".ckpt", ".bin")
_MAX_CONFIG = 1 << 20
_MAX_NAME = 300
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a pointer of Git LFS; run `git lfs pull` to fetch the file"),
    (0, b"<", "a web page (a failed download); download the file again"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0, b"\x89HDF", "an HDF5 file; save the weights as .npz"),
    (0, b"\x93NUMPY", "one NumPy array; save all of them as .npz"),
)
_NONE = "bytes of no known format; copy or download the file again"


@dataclass
class Source:
    """What a weights file holds."""

    path: Path
    """The file; of a model folder, the folder."""
    kind: Kind
    """Format, told by content: native is a model folder of this package."""
    tensors: dict[str, Tensor]
    """Every tensor by its name in the file, in the file's order and dtype, in memory of its own: a loader may keep
    them, and frees what it transforms by popping it."""
    wrapper: str = ""
    """Key that the tensors were found under (state_dict or model); empty where they are the top level."""
    beside: frozenset[str] = frozenset()
    """Top-level keys next to the wrapper."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Plain values: the file's ``meta`` (CLASSES, PALETTE, config text, ...) and plain values beside the wrapper; of a
    native folder, its ``config``."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Entries that are bookkeeping of the format, not weights: name to reason."""


def read_checkpoint(path: str | Path) -> Source:
    """Read a weights file, or a folder that holds exactly one.

    Raises: CheckpointError with one line that names the file and what is wrong with it.
    """
    file = weights_file(Path(path))
    inside = file / WEIGHTS_FILE if file.is_dir() else file
    try:
        with inside.open("rb") as opened:
            source = _read(file, opened)
    except Unusable as fault:
        raise CheckpointError(f"{inside}: {fault.what}; {fault.remedy}") from None
    except OSError as error:
        raise CheckpointError(f"{inside}: must be readable, got {error.strerror}; check the path") from None
    except MemoryError:
        raise CheckpointError(f"{inside}: must fit into memory, got too little of it; close other programs") from None
    _check_names(source, inside)
    _check_sharing(source, inside)
    for prefix in ("module.", "_orig_mod."):  # left by data parallel and compiled models
        if source.tensors and all(name.startswith(prefix) for name in source.tensors):
            source.tensors = {name.removeprefix(prefix): source.tensors[name] for name in source.tensors}
    return source


def weights_file(path: Path) -> Path:
    """Return what is meant: the file itself, the one weights file of a folder, a model folder of this package, or of a
    run folder the best model.

    Raises: CheckpointError where there is none, or more than one.
    """
    try:
        return _weights_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: must be a path that can be read, got {error.strerror}; check it") from None


def _weights_file(path: Path) -> Path:
    if path.is_dir():
        if (native := model_folder(path)) is not None and _is_native(native):
            return native
        found = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file())
        found = found or sorted(p for p in path.iterdir() if p.suffix == ".npz" and p.is_file())
        if len(found) != 1:
            told = ", ".join(p.name for p in found[:5]) or "none"
            raise CheckpointError(f"{path}: must hold exactly one weights file, got {told}; name the file itself")
        path = found[0]
    if not path.exists():
        raise CheckpointError(f"{path}: must be a weights file or a folder with one, got nothing; check the path")
    if not path.is_file():
        raise CheckpointError(f"{path}: must be a file, got a device or a pipe; copy it into a file first")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: must hold something, got 0 bytes; the copy or the save was cut off")
    return path.parent if path.name == WEIGHTS_FILE and _is_native(path.parent) else path


def _read(path: Path, file: BinaryIO) -> Source:
    head = file.read(512)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        entries = read_directory(file)
        if any(name == "data.pkl" or name.endswith("/data.pkl") for name in entries):
            return Source(path, "torch", *read_zip(file, entries))
        if entries and all(name.endswith(".npy") for name in entries):
            return Source(path, "npz", read_npz(file, entries))
        raise Unusable("must be a checkpoint of torch or an .npz, got another zip archive", "unpack it first")
    if head.startswith(LEGACY_START):
        return Source(path, "torch", *read_legacy(file))
    # Before pickles: the length that such a file begins with may look like the start of one.
    if len(head) > 8 and head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        tensors, meta = read_safetensors(file)
        if path.is_dir():
            return Source(path, "native", tensors, meta={"config": _config(path)})
        return Source(path, "safetensors", tensors, meta=meta)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        tensors, dropped = read_paddle(file)
        return Source(path, "paddle", tensors, dropped=dropped)
    got = next((text for at, mark, text in _OTHERS if head[at : at + len(mark)] == mark), _NONE)
    what, _, remedy = got.partition("; ")
    raise Unusable(f"must be a checkpoint of torch, Paddle or NumPy or a .safetensors, got {what}", remedy or AGAIN)


def _check_names(source: Source, file: Path) -> None:
    """Refuse names that would break a message's one line, or a terminal."""
    wrong = next((name for name in source.tensors if not name.isprintable() or len(name) > _MAX_NAME), None)
    if wrong is not None:
        what = f"names of tensors must be printable and at most {_MAX_NAME} letters"
        raise CheckpointError(f"{file}: {what}, got {shortened(wrong)}; {DISTRUST}")


def _check_sharing(source: Source, file: Path) -> None:
    """Refuse tensors that are so many views of the same bytes that a model's own copies would fill the memory."""
    size, claimed = file.stat().st_size, sum(tensor.nbytes for tensor in source.tensors.values())
    if claimed > most_bytes(size):
        told = f"{claimed} bytes in {len(source.tensors)} tensors"
        raise CheckpointError(f"{file}: tensors must not repeat the file's {size} bytes, got {told}; {DISTRUST}")


def _is_native(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file() and _config(folder).get("format") == FORMAT


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > _MAX_CONFIG:
            return {}
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
