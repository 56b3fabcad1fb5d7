"""Find the model a path means, and say exactly which weights and which data a result belongs to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from setr_fast.errors import CheckpointError
from setr_fast.models.model import SegmentationModel
from setr_fast.models.store import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    is_complete,
    load_model,
    model_folder,
)

if TYPE_CHECKING:
    from setr_fast.data.source import Source


def load_checkpoint(path: Path) -> tuple[SegmentationModel, Path]:
    """Return the model that a path means, and where it lies: a model folder, or a weights file of another code base.

    The weights of a folder are mapped, not copied.

    Raises: CheckpointError where there is none; ConfigError where a file does not say enough: `convert` takes the rest.
    """
    foreign = Path(path).is_file() and Path(path).name not in (CONFIG_FILE, WEIGHTS_FILE)
    if foreign or (Path(path) / ADAPTER_CONFIG).is_file():
        from setr_fast.checkpoints.load import load  # all code bases' rules: a tenth of starting, and seldom needed

        return load(path), Path(path) if foreign else Path(path) / ADAPTER_FILE
    folder = checkpoint_folder(path)
    return load_model(folder, mapped=True), folder


def checkpoint_folder(path: Path) -> Path:
    """Return the folder of a saved model: ``path`` itself, or of a run folder its best, else its newest checkpoint.

    A path to one of the two files means their folder.

    Raises: CheckpointError where there is none.
    """
    path = Path(path)
    if path.is_file() and path.name in (CONFIG_FILE, WEIGHTS_FILE):
        path = path.parent
    if (found := model_folder(path)) is not None:
        return found
    saved = [file.parent for file in (path / "checkpoints").glob("**/" + WEIGHTS_FILE) if is_complete(file.parent)]
    if saved:
        return max(saved, key=lambda folder: (_numbers(folder.relative_to(path)), folder.stat().st_mtime))
    got = "a folder without them" if path.is_dir() else "a file" if path.exists() else "nothing"
    raise CheckpointError(
        f"{path}: checkpoint must be a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or a run folder, got {got}; "
        "give what `train` or `model.save` wrote, or a weights file of another code base"
    )


def weights_sha256(place: Path) -> str:
    """Return the hash of the weights file, or of that in a model folder, in hex."""
    return _digest(_chunks(place if place.is_file() else place / WEIGHTS_FILE))


def data_sha256(source: Source) -> str:
    """Return the hash of every sample's name and content, in order.

    Content is the bytes of picture and mask files where the source has files (``samples``), else its pixels.
    """

    def parts() -> Iterator[bytes]:
        samples = getattr(source, "samples", None)
        whole: set[Path] = set()  # files of several samples, which are hashed once
        for index, name in enumerate(source.names):
            yield f"\0{name}\0".encode("utf-8", "surrogateescape")
            if samples is None:
                for array in source.read(index):
                    yield repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()
                continue
            sample = samples[index]
            if sample.part is not None:
                yield f"\0{sample.part}\0".encode()
            for path in (sample.image, sample.mask, sample.extra):
                if path is not None and path not in whole:
                    if sample.part is not None:
                        whole.add(path)
                    yield f"\0{path.stat().st_size}\0".encode()
                    yield from _chunks(path)

    return _digest(parts())


PLACES = ("root", "classes", "workers", "shards", "val_shards", "shard_mix", "shard_cache", "shard_cache_gib")


def settings_sha256(settings: Any) -> str:
    """Return the hash of settings as canonical JSON: sorted keys, no blanks.

    Where the files lay (``data.root``, ``data.shards``, ``data.classes``) and how many processes read them is not in
    it: the same evaluation on another machine has the same hash.
    """
    kept = dict(settings)
    if isinstance(kept.get("data"), dict):
        kept["data"] = {key: value for key, value in kept["data"].items() if key not in PLACES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", str(path)))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            yield chunk


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
