"""What a tar shard holds: samples by number, and where in the file their picture and mask lie.

Members of one sample stand together and share a name up to its first dot (WebDataset's rule): ``0001.jpg`` and
``0001.mask.png``. Nothing is unpacked; names are only compared.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from setr_fast.data.faults import Fault, FaultError, some
from setr_fast.data.layouts.lists import is_picture_name
from setr_fast.errors import BackendError

MASK_WORDS = {"mask", "seg", "label", "labels", "annotation", "target", "gt"}
"""Parts of an ending that say mask: ``0001.mask.png``."""
LOSSY = {"jpg", "jpeg", "webp"}


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, as small as their names and four numbers each."""

    shown: str
    """Path or address of the shard, for messages."""
    container: Path
    """The file itself."""
    keys: list[str]
    endings: list[tuple[str, str]]
    """Of picture and mask."""
    places: NDArray[np.int64]
    """Shapes: [N, 4]: offset and size of the picture, offset and size of the mask."""

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, number: int) -> str:
        """Return what reports call a sample: the shard's stem and its key."""
        return f"{Path(self.shown).stem}/{self.keys[number]}"

    def members(self, number: int) -> tuple[str, str]:
        """Return the names of a sample's picture and mask, for messages."""
        picture, mask = (f"{self.shown}/{self.keys[number]}.{ending}" for ending in self.endings[number])
        return picture, mask

    def read(self, number: int) -> tuple[bytes, bytes]:
        """Return the files of a sample: picture and mask."""
        start, size, mask_start, mask_size = map(int, self.places[number])
        with self.container.open("rb", buffering=0) as file:
            return _part(file.fileno(), start, size), _part(file.fileno(), mask_start, mask_size)


def _part(handle: int, start: int, size: int) -> bytes:
    data = os.pread(handle, size, start)
    while len(data) < size:  # more than 2 GiB at once, or a file that was cut since
        more = os.pread(handle, size - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


@dataclass(frozen=True)
class Endings:
    """Which members are picture and mask; empty: found by their names."""

    picture: str = ""
    mask: str = ""

    def choose(self, endings: list[str]) -> tuple[str, str] | str:
        """Return the endings of picture and mask among a sample's, or what is wrong with them."""
        if self.picture and self.mask:
            missing = [ending for ending in (self.picture, self.mask) if ending not in endings]
            return f"no .{missing[0]}" if missing else (self.picture, self.mask)
        usable = [e for e in endings if is_picture_name(f"a.{e}")]
        masks = [self.mask] if self.mask else [e for e in usable if MASK_WORDS & set(e.split(".")[:-1])]
        pictures = [self.picture] if self.picture else [e for e in usable if e not in masks]
        if not masks and len(pictures) == 2:
            lossy = [e for e in pictures if e.split(".")[-1] in LOSSY]
            if len(lossy) == 1:
                masks = [e for e in pictures if e not in lossy]
                pictures = lossy
        if len(masks) == len(pictures) == 1 and {*masks, *pictures} <= set(endings):
            return pictures[0], masks[0]
        return some([f".{ending}" for ending in endings])


def read_index(shown: str, container: Path, endings: Endings) -> ShardIndex:
    """Read the headers of a shard, which skips over the contents.

    Raises: FaultError for a file that is no whole, uncompressed tar, and for a sample without picture or mask.
    """
    keys: list[str] = []
    chosen: list[tuple[str, str]] = []
    places: list[tuple[int, int, int, int]] = []
    known: dict[tuple[str, ...], tuple[str, str]] = {}
    for key, members in _samples(shown, container):
        kinds = tuple(members)
        if kinds not in known:
            choice = endings.choose(list(kinds))
            if isinstance(choice, str):
                rule = f"sample '{key}' must have one picture and one mask, got {choice}"
                remedy = "name their endings: --data.shard-picture jpg --data.shard-mask png"
                raise FaultError(Fault(shown, rule, remedy))
            known[kinds] = choice
        picture, mask = known[kinds]
        keys.append(key)
        chosen.append(known[kinds])
        places.append((*members[picture], *members[mask]))
    return ShardIndex(shown, container, keys, chosen, np.array(places, np.int64).reshape(-1, 4))


def count_samples(shown: str, container: Path) -> int:
    """Return how many samples a shard holds, whatever their members are."""
    return sum(1 for _ in _samples(shown, container))


def _samples(shown: str, container: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yield each sample's key and its members: ending -> offset and size."""
    split = name_splitter()
    seen: set[str] = set()
    current: str | None = None
    members: dict[str, tuple[int, int]] = {}
    for name, offset, size in _members(shown, container):
        key, ending = split(name)
        if key is None or name.startswith("__"):  # WebDataset's own notes
            continue
        if key != current:
            if current is not None:
                yield current, members
            if key in seen:
                rule = f"members of a sample must stand together and keys must differ, got '{key}' again"
                raise FaultError(Fault(shown, rule, "write the shard sorted by name"))
            seen.add(key)
            current, members = key, {}
        if ending.lower() in members:
            rule = f"members must have different names, got '{name}' again"
            raise FaultError(Fault(shown, rule, "write the shard again"))
        members[ending.lower()] = (offset, size)
    if current is not None:
        yield current, members


def _members(shown: str, container: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each plain file in a tar."""
    length = container.stat().st_size
    try:
        with container.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else every header of a shard stays in memory
                if info.isreg() and not info.issparse():
                    if info.offset_data + info.size > length:
                        raise tarfile.ReadError("unexpected end of data")
                    yield info.name, info.offset_data, info.size
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("a damaged header, or no end mark")
    except (tarfile.TarError, EOFError, ValueError) as error:
        remedy = "fetch or write the shard again; a compressed one must be unpacked (gunzip)"
        raise FaultError(Fault(shown, f"shard must be a whole, uncompressed tar, got '{error}'", remedy)) from None


def name_splitter() -> Callable[[str], tuple[str | None, str]]:
    """Return WebDataset's rule that splits a member's name into key and ending."""
    try:
        from webdataset.tariterators import base_plus_ext
    except ImportError:
        raise BackendError("data.shards: needs the library webdataset; pip install 'setr_fast[shards]'") from None
    split: Callable[[str], tuple[str | None, str]] = base_plus_ext
    return split
