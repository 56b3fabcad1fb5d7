"""Files of a sharded checkpoint hold tensors as they are; those that torch's own writer made are read, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from setr_fast.errors import CheckpointError
from setr_fast.train.checkpoint import ROOT, SHARDS, read_tensors
from setr_fast.train.shards import Writer


def _tensors() -> dict[str, Tensor]:
    return {
        "weights/whole": torch.randn(3, 5),
        "weights/half": torch.randn(7).bfloat16(),
        "weights/strided": torch.randn(6, 4).t(),
        "buffers/count": torch.tensor(2**40 + 1),
        "buffers/empty": torch.zeros(0, 3),
        "buffers/flags": torch.tensor([True, False, True]),
    }


@pytest.mark.parametrize("writer", [Writer, dcp.FileSystemWriter], ids=["ours", "torch's"])
def test_tensors_are_read_back_to_the_bit(writer: type[dcp.FileSystemWriter], tmp_path: Path) -> None:
    tensors = _tensors()
    dcp.save({ROOT: tensors}, storage_writer=writer(tmp_path / SHARDS), no_dist=True)
    found = read_tensors(tmp_path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_file_that_ends_early_is_one_line(tmp_path: Path) -> None:
    dcp.save({ROOT: _tensors()}, storage_writer=Writer(tmp_path / SHARDS), no_dist=True)
    (file,) = (tmp_path / SHARDS).glob("*.bytes")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="its tensors cannot be read") as caught:
        read_tensors(tmp_path)
    assert "\n" not in str(caught.value)
