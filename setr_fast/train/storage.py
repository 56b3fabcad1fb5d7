"""How a checkpoint's tensors lie in their files: as they are in memory, one after the other, with a checksum each.

torch.distributed.checkpoint decides who writes what and keeps the table (``.metadata``). Its own files hold a zip
archive per tensor, made by Python code that a training step beside it has to wait for; plain bytes are written without
the interpreter's lock.
"""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

_BUFFER_BYTES = 2**20  # small tensors go to the system together


@dataclass(frozen=True)
class Place:
    """Where a tensor's (or a shard's) bytes are, and their checksum."""

    file: str
    offset: int
    shape: tuple[int, ...]
    crc32: int


class Writer(dcp.FileSystemWriter):
    """Writes one file per rank; what returns is on the disk."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's tensors in the plan's order."""
        name = f"{plan.storage_data.prefix}0.distcp"
        written: list[WriteResult] = []
        offset = 0
        with (Path(self.path) / name).open("wb", buffering=_BUFFER_BYTES) as stream:
            for item in plan.items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor)
                data = _bytes_of(tensor.detach().contiguous())
                stream.write(data)
                place = Place(name, offset, tuple(tensor.shape), zlib.crc32(data))
                written.append(WriteResult(item.index, len(data), place))
                offset += len(data)
            stream.flush()
            os.fsync(stream.fileno())
        done: Future[list[WriteResult]] = Future()
        done.set_result(written)
        return done


class Reader(dcp.FileSystemReader):
    """Reads what ``Writer`` wrote, and the zip archives of checkpoints before format 3."""

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Note each tensor's dtype."""
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        tensors = metadata.state_dict_metadata.items()
        self._dtypes = {name: t.properties.dtype for name, t in tensors if isinstance(t, TensorStorageMetadata)}

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the tensors that this rank asks for, in the order in which they lie in the files."""
        if not all(isinstance(self.storage_data[item.storage_index], Place) for item in plan.items):
            return super().read_data(plan, planner)
        files: defaultdict[str, list[ReadItem]] = defaultdict(list)
        for item in sorted(plan.items, key=lambda item: self.storage_data[item.storage_index].offset):
            files[self.storage_data[item.storage_index].file].append(item)
        for file, items in files.items():
            with (Path(self.path) / file).open("rb") as stream:
                for item in items:
                    index = item.storage_index
                    place: Place = self.storage_data[index]
                    stored = torch.empty(place.shape, dtype=self._dtypes[index.fqn])
                    data = _bytes_of(stored)
                    stream.seek(place.offset)
                    if stream.readinto(data) != len(data) or zlib.crc32(data) != place.crc32:
                        raise ValueError(f"{file}: the bytes of {index.fqn} are not those that were written")
                    for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        stored = stored.narrow(axis, start, length)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(stored)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return a contiguous CPU tensor's memory, not copied."""
    if tensor.numel() == 0:
        return memoryview(bytearray())
    return tensor.reshape(-1).view(torch.uint8).numpy().data
