"""Files of a sharded checkpoint: one per process, its tensors' bytes one after the other.

torch.distributed.checkpoint plans who writes what and keeps the list of tensors (``.metadata``); we write the bytes.
Its own writer makes an archive of each tensor, in Python: a third of a millisecond for each of some thousand tensors,
in which the thread that writes holds the interpreter and training stands still.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from setr_fast.errors import CheckpointError

SUFFIX = ".bytes"


class Writer(dcp.FileSystemWriter):
    """Writes a process's tensors, which must be on the CPU, into one file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write, sync, and return where everything lies."""
        name = f"{plan.storage_data.prefix}0{SUFFIX}"
        written: list[WriteResult] = []
        offset = 0
        with (self.folder / name).open("wb", buffering=2**20) as file:
            for item in plan.items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor), "a checkpoint is made of tensors"
                size = file.write(_bytes(tensor))
                place = _StorageInfo(name, offset, size)
                written.append(WriteResult(index=item.index, size_in_bytes=size, storage_data=place))
                offset += size
            file.flush()
            os.fsync(file.fileno())
        done: Future[list[WriteResult]] = Future()
        done.set_result(written)
        return done


class Reader(dcp.FileSystemReader):
    """Reads what ``Writer`` wrote, and checkpoints of torch's own writer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self._known: dict[str, Any] = {}

    def set_up_storage_reader(self, metadata: Any, *args: Any, **kwargs: Any) -> None:
        """Remember what the tensors are: their bytes do not say so."""
        super().set_up_storage_reader(metadata, *args, **kwargs)
        self._known = metadata.state_dict_metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read every piece that this process needs into its place."""
        files: dict[str, list[ReadItem]] = defaultdict(list)
        others: list[ReadItem] = []
        for item in plan.items:
            name = self.storage_data[item.storage_index].relative_path
            (files[name] if name.endswith(SUFFIX) else others).append(item)
        for name, items in files.items():
            with (self.folder / name).open("rb") as file:
                for item in sorted(items, key=lambda item: self.storage_data[item.storage_index].offset):
                    piece = self._piece(file, item.storage_index)
                    for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        piece = piece.narrow(dim, start, length)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(piece)
                    planner.commit_tensor(item, target)
        if others:
            return super().read_data(LoadPlan(others, plan.storage_data, plan.planner_data), planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _piece(self, file: Any, index: MetadataIndex) -> Tensor:
        """Return one tensor, or one process's piece of it, as it was written."""
        place, known = self.storage_data[index], self._known[index.fqn]
        assert isinstance(known, TensorStorageMetadata)
        chunk = next(chunk for chunk in known.chunks if index.offset is None or chunk.offsets == index.offset)
        piece = torch.empty(chunk.sizes, dtype=known.properties.dtype)
        file.seek(place.offset)
        if place.length != piece.nbytes or file.readinto(_bytes(piece)) != piece.nbytes:
            raise CheckpointError(f"{file.name}: {index.fqn} must have {piece.nbytes} bytes, got another number")
        return piece


def _bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes in place, or those of a copy where it is strided."""
    flat = tensor.detach().contiguous().reshape(-1)
    values: Any = flat.view(torch.uint8).numpy()
    return memoryview(values) if flat.numel() else memoryview(b"")
