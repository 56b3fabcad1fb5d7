"""Weights files of every format, against what their own libraries read."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from setr_fast.checkpoints.read import read_checkpoint
from setr_fast.engine.checkpoints import checkpoint_folder
from setr_fast.errors import CheckpointError


def _tensors() -> dict[str, Tensor]:
    base = torch.randn(6, 5)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
    return {
        "a.weight": torch.randn(3, 4),
        "a.transposed": base.T,
        "a.slice": base[1:4, ::2],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        **{str(kind): torch.randint(0, 2, (3,)).to(kind) for kind in kinds},
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }


def _same(found: dict[str, Tensor], wanted: dict[str, Any]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_torch_files_read_as_torch_reads_them(tmp_path: Path, zipped: bool, wrapper: str) -> None:
    state = OrderedDict(_tensors())
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    content: Any = {wrapper: state, "epoch": 3, "meta": {"CLASSES": ("a", "b")}} if wrapper else state
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    source = read_checkpoint(tmp_path / "model.pth")
    _same(source.tensors, _tensors_of(torch.load(tmp_path / "model.pth", weights_only=True), wrapper))
    assert (source.kind, source.wrapper) == ("torch", wrapper)
    assert source.meta == ({"epoch": 3, "CLASSES": ("a", "b")} if wrapper else {})
    assert source.beside == (frozenset({"epoch", "meta"}) if wrapper else frozenset())


def _tensors_of(content: Any, wrapper: str) -> dict[str, Any]:
    return dict(content[wrapper] if wrapper else content)


def test_every_recorded_file_reads_as_its_own_library_reads_it(shared: Path) -> None:
    files = sorted(p for p in (shared / "fixtures/parity").glob("*/*") if p.suffix in (".pth", ".npz", ".pdparams"))
    files = [path for path in files if path.name != "data.npz"]
    assert len(files) > 20
    for path in files:
        found = read_checkpoint(path).tensors
        if path.suffix == ".pth":
            content = torch.load(path, weights_only=True)
            _same(found, content.get("state_dict") or content.get("model") or content)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                _same(found, {name: torch.from_numpy(arrays[name]) for name in arrays.files})
        else:
            wanted = pickle.loads(path.read_bytes())
            wanted.pop("StructuredToParameterName@@")
            _same(found, {name: torch.from_numpy(array) for name, array in wanted.items()})


def test_read_tensors_outlive_their_file(tmp_path: Path) -> None:
    for name in ("a.pth", "a.npz", "a.safetensors"):
        path = tmp_path / name
        if path.suffix == ".pth":
            torch.save({"w": torch.ones(1000)}, path)
        elif path.suffix == ".npz":
            np.savez(path, w=np.ones(1000, np.float32))
        else:
            save_file({"w": torch.ones(1000)}, path)
        tensor = read_checkpoint(path).tensors["w"]
        path.write_bytes(b"")
        tensor += 1
        assert tensor.sum() == 2000


def test_what_a_training_loop_leaves_beside_the_weights_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine's checkpoints hold objects of its own class, which torch.load(weights_only=True) refuses."""

    def made(module_name: str, class_name: str) -> Any:
        """Return an object of a class that is not here when the file is read."""
        module = types.ModuleType(module_name)
        found = type(class_name, (), {"__module__": module_name})
        setattr(module, class_name, found)
        monkeypatch.setitem(sys.modules, module_name, module)
        return found()

    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    log = made("mmengine.logging.history_buffer", "HistoryBuffer")
    log.values = np.arange(5.0)
    elsewhere = made("pathlib._local", "PosixPath")  # as Python 3.13 writes a path
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "message_hub": {"log_scalars": OrderedDict(loss=log), "best": np.float64(0.5)},
        "args": argparse.Namespace(lr=0.1, out=Path("x"), data=elsewhere),
        "meta": {"cfg": "model = dict()", "dataset_meta": {"classes": ["a", "b"]}, "seen": {1, 2}},
        "n_cls": 2,
    }
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)
    monkeypatch.undo()
    source = read_checkpoint(tmp_path / "a.pth")
    _same(source.tensors, model.state_dict())
    assert source.meta == {"cfg": "model = dict()", "dataset_meta": {"classes": ["a", "b"]}, "n_cls": 2}
    assert source.beside == frozenset(content) - {"state_dict"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_the_prefix_of_parallel_and_compiled_models_goes(tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}a": torch.ones(1), f"{prefix}b": torch.ones(2)}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth").tensors) == ["a", "b"]


# --- Paddle ---


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("numpy_1", [True, False])
def test_paddle_files_of_every_protocol_and_numpy(tmp_path: Path, protocol: int, numpy_1: bool) -> None:
    arrays = {
        "a": np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big_endian": np.arange(5, dtype=">f4"),
        "count": np.array(3, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "half": np.ones(3, np.float16),
    }
    data = pickle.dumps({**arrays, "StructuredToParameterName@@": {"a": "linear_0.w"}}, protocol)
    if numpy_1:
        assert b"numpy._core.multiarray" in data
        if protocol == 4:  # texts carry their length
            data = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
            data = data[:2] + data[11:]  # without the frame, whose length is another now
        else:
            data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "a.pdparams").write_bytes(data)
    source = read_checkpoint(tmp_path / "a.pdparams")
    assert source.kind == "paddle"
    _same(source.tensors, {k: torch.from_numpy(v.astype(v.dtype.newbyteorder("="))) for k, v in arrays.items()})
    assert all(tensor.is_contiguous() for tensor in source.tensors.values())
    assert list(source.dropped) == ["StructuredToParameterName@@"]


def test_paddle_pairs_and_parameters_in_parts(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(2, 12)
    content = {
        "pair": ("linear_0.w", np.ones(3, np.float32)),
        "big@@.0": whole.reshape(-1)[:10],
        "big@@.1": whole.reshape(-1)[10:],
        "UnpackBigParamInfor@@": {"big": {"OriginShape": (2, 12), "slices": ["big@@.0", "big@@.1"]}},
    }
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps(content, 2))
    source = read_checkpoint(path)
    _same(source.tensors, {"pair": torch.ones(3), "big": torch.from_numpy(whole)})
    del content["big@@.1"]
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(CheckpointError, match="big must have all of its parts, got 1"):
        read_checkpoint(path)


# --- npz, safetensors, folders ---


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_npz_files(tmp_path: Path, save: Any) -> None:
    arrays = {"a/kernel": np.random.default_rng(0).normal(size=(3, 4, 5)), "f": np.asfortranarray(np.eye(3))}
    arrays |= {"big_endian": np.arange(4, dtype=">i4"), "scalar": np.array(2.0, np.float32), "none": np.zeros((0, 2))}
    save(tmp_path / "a.npz", **arrays)
    source = read_checkpoint(tmp_path / "a.npz")
    assert source.kind == "npz"
    _same(source.tensors, {k: torch.from_numpy(v.astype(v.dtype.newbyteorder("="))) for k, v in arrays.items()})


def test_safetensors_files(tmp_path: Path) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors().items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"made": "here"})
    source = read_checkpoint(tmp_path / "a.safetensors")
    assert source.kind == "safetensors"
    assert source.meta == {"made": "here"}
    assert {name: tensor.dtype for name, tensor in source.tensors.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(source.tensors[name], tensor) for name, tensor in tensors.items())


def test_formats_are_told_by_content_not_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    (tmp_path / "a.npz").rename(tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").kind == "npz"


def test_a_folder_with_one_weights_file_stands_for_it(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "model.pth")
    (tmp_path / "config.json").write_text("{}")
    np.savez(tmp_path / "data.npz", x=np.ones(1))
    assert read_checkpoint(tmp_path).path == tmp_path / "model.pth"
    torch.save({"w": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"exactly one weights file, got model.pth, other.pth; name the file"):
        read_checkpoint(tmp_path)


def test_a_model_folder_is_native_by_its_files_and_by_its_run(tmp_path: Path) -> None:
    import setr_fast

    model = setr_fast.create_model("setr_naive_vit_t16", num_classes=3, image_size=64)
    model.save(tmp_path / "run" / "best")
    for path in (tmp_path / "run" / "best", tmp_path / "run" / "best" / "model.safetensors", tmp_path / "run"):
        source = read_checkpoint(path)
        assert (source.kind, source.path) == ("native", tmp_path / "run" / "best")
        assert checkpoint_folder(path) == tmp_path / "run" / "best", "eval and predict mean the same"
        assert source.meta["config"] == json.loads((tmp_path / "run/best/config.json").read_text())
        assert source.tensors.keys() == model.state_dict().keys()


def test_a_zip64_archive_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    np.savez(tmp_path / "a.npz", a=np.arange(500.0), b=np.ones(3))
    assert b"PK\6\6" in (tmp_path / "a.npz").read_bytes()
    _same(read_checkpoint(tmp_path / "a.npz").tensors, {"a": torch.arange(500.0).double(), "b": torch.ones(3).double()})


@pytest.mark.parametrize("form", ["paddle", "npz"])
@pytest.mark.parametrize("shape", [(1024, 700), (5, 300_001)])
def test_large_matrices_are_turned_while_they_are_read(tmp_path: Path, form: str, shape: tuple[int, int]) -> None:
    """Their transpose, which is what a linear layer takes, needs no copy."""
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    path = tmp_path / "file"
    if form == "paddle":
        path.write_bytes(pickle.dumps({"before": np.ones(3, np.float32), "matrix": matrix}, protocol=4))
    else:
        with path.open("wb") as file:
            np.savez(file, before=np.ones(3, np.float32), matrix=matrix)
    tensors = read_checkpoint(path).tensors
    assert torch.equal(tensors["matrix"], torch.from_numpy(matrix))
    assert tensors["matrix"].T.is_contiguous()
    assert torch.equal(tensors["before"], torch.ones(3))
