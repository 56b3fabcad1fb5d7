"""Checkpoint files hold tensors as they are in memory: read back to the bit, and damage is seen."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from setr_fast.errors import CheckpointError
from setr_fast.models.catalog import model_spec
from setr_fast.train import checkpoint
from setr_fast.train.checkpoint import ROOT, SHARDS
from setr_fast.train.storage import Writer

TENSORS = {
    "weights/odd": torch.randn(3, 5, 7),
    "weights/half": torch.randn(11).bfloat16(),
    "weights/turned": torch.randn(4, 6).T,
    "weights/large": torch.randn(600, 1000),
    "buffers/count": torch.tensor(7),
    "buffers/none": torch.empty(0, 3),
    "optimizer/a/step": torch.tensor(3.0),
}


def _save(folder: Path, writer: type[dcp.FileSystemWriter]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({ROOT: TENSORS}, storage_writer=writer(folder / SHARDS), no_dist=True)
    return folder


@pytest.mark.parametrize("writer", [Writer, dcp.FileSystemWriter], ids=["ours", "before_format_3"])
def test_tensors_come_back_to_the_bit(tmp_path: Path, writer: type[dcp.FileSystemWriter]) -> None:
    read = checkpoint.read_tensors(_save(tmp_path, writer))
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_a_part_of_a_tensor_is_read(tmp_path: Path) -> None:
    """As another number of ranks reads it."""
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

    reader = checkpoint.Reader(_save(tmp_path, Writer) / SHARDS)
    reader.set_up_storage_reader(reader.read_metadata(), True)
    target = torch.empty(2, 5, 3)

    class Planner(dcp.DefaultLoadPlanner):
        def resolve_tensor(self, read_item: ReadItem) -> Tensor:
            return target

        def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
            pass

    index = next(i for i in reader.storage_data if i.fqn == f"{ROOT}.weights/odd")
    size = torch.Size
    item = ReadItem(LoadItemType.TENSOR, MetadataIndex("x"), size([0, 0, 0]), index, size([1, 0, 4]), size([2, 5, 3]))
    reader.read_data(LoadPlan([item]), Planner())
    assert torch.equal(target, TENSORS["weights/odd"][1:, :, 4:])


@pytest.mark.parametrize(("number", "fits"), [(2, True), (3, True), (1, False), (4, False)])
def test_formats_that_are_read(tmp_path: Path, number: int, fits: bool) -> None:
    spec = model_spec("setr_naive_vit_t16", 2, 32)
    facts = {"format": number, "step": 5, "best_miou": 0.5, "config": {}, "spec": spec.to_dict()}
    (tmp_path / checkpoint.STATE).write_text(json.dumps(facts))
    if fits:
        assert checkpoint.read_progress(tmp_path) == checkpoint.Progress(5, 0.5, {}, spec)
    else:
        with pytest.raises(CheckpointError, match=f"its format is {number}, not one of"):
            checkpoint.read_progress(tmp_path)


@pytest.mark.parametrize("at", [0, -1])
def test_one_bit_that_changed_is_seen(tmp_path: Path, at: int) -> None:
    saved = _save(tmp_path, Writer)
    file = next((saved / SHARDS).glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the bytes of run\..* are not those that were written; delete this"):
        checkpoint.read_tensors(saved)
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="are not those that were written"):
        checkpoint.read_tensors(saved)
