"""A data set as WebDataset shards: any source that can be read, written once, complete or absent."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from setr_fast.data.classes import ClassTable
from setr_fast.data.formats.signatures import HEAD_BYTES, Unusable, sniff
from setr_fast.data.options import DataConfig
from setr_fast.data.source import Source, open_source
from setr_fast.errors import BackendError, ConfigError
from setr_fast.files import atomic_folder

ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
HEADERS = 2048
"""Bytes that a tar takes at most beside the contents of a sample: two headers, two paddings."""


def write_shards(config: DataConfig, out: Path, splits: Sequence[str], most_bytes: int) -> Iterator[str]:
    """Write the shards of all splits into ``out``, with classes.csv and an index per split; yield a line per split.

    A sample's picture is the file as it is; its mask becomes training ids (255: ignored), so label options are not
    needed to read the shards. The folder appears when all is written.

    Raises: FaultError for the first sample that cannot be read; ConfigError if ``out`` is there.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"data shards: {out} must not exist yet; delete it, or name another folder")
    names = list(splits) or [config.train_split, config.val_split]
    sources = {split: open_source(config, split) for split in dict.fromkeys(names)}
    if len({source.classes.names for source in sources.values()}) > 1:
        raise ConfigError("data: all splits must have the same classes")
    lines = []
    with atomic_folder(out) as folder:
        for split, source in sources.items():
            listed = _write_split(source, split, folder, most_bytes)
            (folder / f"{split}.json").write_text(json.dumps({"wids_version": 1, "shardlist": listed}, indent=1))
            size = sum(entry["filesize"] for entry in listed)
            lines.append(f"{split}: {len(source)} samples, {len(listed)} shards, {size / 2**20:.1f} MiB -> {out}")
        _write_classes(next(iter(sources.values())).classes, folder / "classes.csv")
    yield from lines


def _write_split(source: Source, split: str, folder: Path, most_bytes: int) -> list[dict[str, Any]]:
    try:
        from webdataset import TarWriter
    except ImportError:
        raise BackendError("data shards: needs the library webdataset; pip install 'setr_fast[shards]'") from None
    listed: list[dict[str, Any]] = []
    samples = _samples(source)
    pending = next(samples, None)
    while pending is not None:
        file = folder / f"{split}-{len(listed):06d}.tar"
        written = count = 0
        with file.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0.0) as tar:
            while pending is not None:
                size = sum(len(v) for v in pending.values() if isinstance(v, bytes)) + HEADERS
                if count and written + size > most_bytes:
                    break
                tar.write(pending)
                written, count = written + size, count + 1
                pending = next(samples, None)
        listed.append({"url": file.name, "nsamples": count, "filesize": file.stat().st_size})
    return listed


def _samples(source: Source) -> Iterator[dict[str, Any]]:
    """Yield samples as WebDataset has them, each read and judged on the way."""
    files = None if getattr(source, "cuts", False) else getattr(source, "samples", None)
    for index in range(len(source)):
        image, label = source.read(index)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ConfigError(f"data shards: pictures must be 8-bit RGB to be put into shards, got {image.shape}")
        ending, content = _picture(image, files[index].image if files is not None else None)
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", source.names[index])[:60]  # a key ends at its first dot
        yield {"__key__": f"{index:08d}-{stem}", ending: content, "mask.png": _png(label)}


def _picture(image: np.ndarray, path: Path | None) -> tuple[str, bytes]:
    """Return a picture's ending and bytes: those of its file where it is a picture's, else a PNG."""
    if path is not None:
        content = path.read_bytes()
        try:
            return ENDINGS[sniff(content[:HEAD_BYTES])], content
        except (Unusable, KeyError):  # a table, a volume: the picture is only a part of it
            pass
    return "png", _png(image)


def _png(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def _write_classes(classes: ClassTable, path: Path) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "name", "r", "g", "b"])
        rows.writerows([index, name, *classes.palette[index]] for index, name in enumerate(classes.names))
