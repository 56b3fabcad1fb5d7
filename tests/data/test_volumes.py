"""Volumes of medical data: slices of files, their names, their Dice coefficients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from setr_fast.data.checks.check import check_folder
from setr_fast.data.formats.arrays import as_bytes, as_ids, read_npy
from setr_fast.data.options import DataConfig
from setr_fast.data.source import open_source
from setr_fast.errors import DataError
from tests.data.test_known import build_synapse


def test_slices_of_a_volume_are_samples(tmp_path: Path) -> None:
    build_synapse(tmp_path)
    config = DataConfig(root=tmp_path, dataset="synapse")
    train, test = open_source(config, "train"), open_source(config, "test")
    assert train.names == ["case0005_slice000", "case0005_slice001"]
    assert test.names == [f"case0001_slice00{part}" for part in range(3)]
    for part in (0, 1):
        for one, other in zip(train.read(part), test.read(part), strict=True):
            np.testing.assert_array_equal(one, other)
    image, label = test.read(2)
    stored = np.random.default_rng(0).random((3, 40, 48)).astype(np.float32)[2]
    assert (image == np.floor(stored.astype(np.float64) * 255 + 0.5)[..., None]).all()
    assert label[0, :9].tolist() == [(2 * 40 * 48 + column) % 9 for column in range(9)]


def test_check_counts_volumes_not_slices(tmp_path: Path) -> None:
    build_synapse(tmp_path)
    report = check_folder(DataConfig(root=tmp_path, dataset="synapse"))
    assert not report.errors
    said = [fault.what for fault in report.warnings]
    assert "split 'train' of synapse should have 18 volumes, got 1" in said
    assert "split 'test' of synapse should have 12 volumes, got 1" in said


def test_cut_and_foreign_files_are_named(tmp_path: Path) -> None:
    build_synapse(tmp_path)
    slice_file = tmp_path / "train_npz/case0005_slice000.npz"
    slice_file.write_bytes(slice_file.read_bytes()[:200])
    volume = tmp_path / "test_vol_h5/case0001.npy.h5"
    volume.write_bytes(b"\x89HDF\r\n" + bytes(100))
    faults = check_folder(DataConfig(root=tmp_path, dataset="synapse")).errors
    assert {fault.path.name for fault in faults} == {slice_file.name, volume.name}
    np.savez(slice_file, picture=np.zeros((4, 4)))
    with pytest.raises(DataError, match="'image' and 'label'"):
        open_source(DataConfig(root=tmp_path, dataset="synapse"), "train")


def test_arrays_never_run_code(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="complete array file"):
        read_npy(tmp_path / "a.npy")


def test_measurements_become_bytes(tmp_path: Path) -> None:
    values = np.array([[10.0, 20.0], [15.0, 30.0]])
    assert as_bytes(values, tmp_path).tolist() == [[0, 128], [64, 255]]
    assert as_bytes(values, tmp_path, (0.0, 20.0)).tolist() == [[128, 255], [191, 255]]
    assert as_bytes(np.full((1, 2), 7.0), tmp_path).tolist() == [[0, 0]]
    assert as_bytes(np.array([[0x1234]], np.uint16), tmp_path).tolist() == [[0x12]]
    with pytest.raises(DataError, match="finite"):
        as_bytes(np.array([[np.nan]]), tmp_path)


def test_ids_must_be_whole(tmp_path: Path) -> None:
    assert as_ids(np.array([[0.0, 8.0]]), tmp_path).dtype == np.uint8
    with pytest.raises(DataError, match="fractions"):
        as_ids(np.array([[0.5]]), tmp_path)
    with pytest.raises(DataError, match="from 0"):
        as_ids(np.array([[0.0, np.inf]]), tmp_path)
