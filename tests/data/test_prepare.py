"""Preparation steps: what they make of the official files, that they go on, and what they refuse."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.cli import main
from setr_fast.data.formats.matlab import read_mat_ids
from setr_fast.data.formats.nifti import nifti_shape, read_nifti
from setr_fast.data.options import DataConfig
from setr_fast.data.prepare.coco import rasterise
from setr_fast.data.prepare.steps import CONTEXT_IDS, prepare
from setr_fast.data.source import open_source
from setr_fast.errors import ConfigError, DataError
from tests.data.test_known import build

KINDS = {"u1": (2, 9), "u2": (4, 11), "i2": (3, 10), "f8": (9, 6)}


def element(kind: int, content: bytes) -> bytes:
    if 0 < len(content) <= 4:
        return struct.pack("<HH", kind, len(content)) + content.ljust(4, b"\0")
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(name: str, array: np.ndarray) -> bytes:
    stored, kind = KINDS[array.dtype.str[1:]]
    parts = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", *array.shape))
    return element(14, parts + element(1, name.encode()) + element(stored, array.tobytes(order="F")))


def structure(name: str, fields: dict[str, np.ndarray]) -> bytes:
    names = b"".join(key.encode().ljust(16, b"\0") for key in fields)
    parts = element(6, struct.pack("<II", 2, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, name.encode())
    parts += element(5, struct.pack("<i", 16)) + element(1, names)
    return element(14, parts + b"".join(matrix("", array) for array in fields.values()))


def write_mat(path: Path, variable: bytes, compress: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = zlib.compress(variable)
    body = struct.pack("<II", 15, len(packed)) + packed if compress else variable
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM" + body)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_nifti(path: Path, volume: np.ndarray, kind: int, slope: float = 1.0, shift: float = 0.0) -> None:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *volume.shape, 1, 1, 1, 1)
    struct.pack_into("<h", header, 70, kind)
    struct.pack_into("<3f", header, 108, 352.0, slope, shift)
    header[344:348] = b"n+1\0"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(bytes(header) + volume.tobytes(order="F"), 1))


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_matlab_matrix_is_read(tmp_path: Path, kind: str, compress: bool) -> None:
    ids = np.arange(15).reshape(3, 5).astype(kind)
    write_mat(
        tmp_path / "a.mat", matrix("other", ids[:1]) + matrix("S", ids) if not compress else matrix("S", ids), compress
    )
    np.testing.assert_array_equal(read_mat_ids(tmp_path / "a.mat", "S"), ids)
    write_mat(tmp_path / "b.mat", structure("GTcls", {"Boundaries": ids[:1], "Segmentation": ids}), compress)
    np.testing.assert_array_equal(read_mat_ids(tmp_path / "b.mat", "GTcls.Segmentation"), ids)


def test_damaged_matlab_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "a.mat"
    write_mat(good, matrix("S", np.zeros((30, 40), np.uint8)), compress=False)
    content = good.read_bytes()
    for broken, words in (
        (content[:200], "end of the file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "version 5"),
        (content[:128], "variables none"),
    ):
        good.write_bytes(broken)
        with pytest.raises(DataError, match=words):
            read_mat_ids(good, "S")
    write_mat(good, matrix("S", np.zeros((300, 400), np.uint8)))
    with pytest.raises(DataError, match="more than"):
        read_mat_ids(good, "S", max_pixels=100)


def test_pascal_context_ranks_the_459_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2010"
    raw = np.resize(np.arange(460, dtype=np.uint16), (20, 46))
    for stem, split in (("2008_000002", "train"), ("2008_000003", "val")):
        save(base / "JPEGImages" / f"{stem}.jpg", np.zeros((20, 46, 3), np.uint8))
        write_mat(base / "trainval" / f"{stem}.mat", matrix("LabelMap", raw))
        listing = base / "ImageSets" / "Main" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(f"{stem}\n2008_999999\n")  # a picture that nobody annotated
    assert main(["data", "prepare", "pascal_context", str(tmp_path)]) == 0
    assert "4 files written" in capsys.readouterr().out
    for dataset, first in (("pascal_context", 0), ("pascal_context_59", 1)):
        source = open_source(DataConfig(root=tmp_path, dataset=dataset), "train")
        assert source.names == ["2008_000002"]
        label = source.read(0)[1].ravel()
        for rank, category in enumerate(CONTEXT_IDS):
            assert label[category] == (rank - first if rank >= first else 255)
        assert label[1] == (0 if first == 0 else 255), "a category that is none of the 59 is background"


def test_pascal_context_table_is_that_of_the_written_one(shared: Path) -> None:
    rows = (shared / "data" / "pascal_context" / "classes60.csv").read_text().splitlines()
    columns = rows[0].split(",")
    raw = next(index for index, name in enumerate(columns) if "459" in name or "raw" in name)
    found = [int(row.split(",")[raw] or 0) for row in rows[1:]]
    assert tuple(found) == CONTEXT_IDS


def test_cityscapes_training_ids_agree_with_the_label_ids(tmp_path: Path) -> None:
    build("cityscapes", tmp_path)
    prepare("cityscapes_train_ids", tmp_path)
    labels = open_source(DataConfig(root=tmp_path, dataset="cityscapes"), "train")
    trained = open_source(DataConfig(root=tmp_path, dataset="cityscapes_train_ids"), "train")
    assert len(labels) == len(trained) == 2
    np.testing.assert_array_equal(labels.read(1)[1], trained.read(1)[1])


@pytest.mark.parametrize("name", ["cityscapes_train_ids", "pascal_context"])
def test_what_is_not_prepared_is_told_how_to_be(name: str, tmp_path: Path) -> None:
    build(name, tmp_path)
    for mask in [*tmp_path.rglob("*TrainIds.png"), *tmp_path.rglob("SegmentationClassContext/*.png")]:
        mask.unlink()
    with pytest.raises(DataError, match=f"run `setr-fast data prepare {name} {tmp_path}`"):
        open_source(DataConfig(root=tmp_path, dataset=name), "train")


def test_preparing_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    build("cityscapes", tmp_path)
    prepare("cityscapes_train_ids", tmp_path)
    made = sorted(tmp_path.rglob("*_labelTrainIds.png"))
    times = {path: path.stat().st_mtime_ns for path in made}
    made[0].unlink()
    assert prepare("cityscapes_train_ids", tmp_path) == (
        f"cityscapes_train_ids: 1 files written below {tmp_path / 'gtFine'}, 2 were there already"
    )
    assert all(path.stat().st_mtime_ns == times[path] for path in made[1:])
    assert made[0].is_file()
    assert not list(tmp_path.rglob(".setr_fast*"))


def test_voc_and_sbd_are_merged_without_the_pictures_of_val(tmp_path: Path) -> None:
    base, sbd = tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    own, further = np.full((4, 6), 3, np.uint8), np.full((4, 6), 7, np.uint8)
    for stem in ("own_train", "own_val", "both"):
        save(base / "SegmentationClass" / f"{stem}.png", own)
    for stem in ("both", "sbd_new", "own_val"):
        write_mat(sbd / "cls" / f"{stem}.mat", structure("GTcls", {"Segmentation": further}))
    for stem in ("own_train", "own_val", "both", "sbd_new"):
        save(base / "JPEGImages" / f"{stem}.jpg", np.zeros((4, 6, 3), np.uint8))
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("own_train\nboth\n")
    (lists / "val.txt").write_text("own_val\n")
    prepare("pascal_voc_aug", tmp_path)
    train = open_source(DataConfig(root=tmp_path, dataset="pascal_voc_aug"), "trainaug")
    assert list(train.names) == ["both", "own_train", "sbd_new"]
    assert [train.read(index)[1][0, 0] for index in range(3)] == [3, 3, 7]
    assert open_source(DataConfig(root=tmp_path, dataset="pascal_voc_aug"), "val").names == ["own_val"]
    # What is unpacked later is in the list after the next call.
    write_mat(sbd / "cls" / "later.mat", structure("GTcls", {"Segmentation": further}))
    save(base / "JPEGImages" / "later.jpg", np.zeros((4, 6, 3), np.uint8))
    assert "2 files written" in prepare("pascal_voc_aug", tmp_path)
    assert "later" in open_source(DataConfig(root=tmp_path, dataset="pascal_voc_aug"), "trainaug").names


def test_coco_stuff_10k_is_turned_into_pngs(tmp_path: Path) -> None:
    ids = np.resize(np.array([0, 1, 13, 182], np.uint8), (5, 8))
    for stem, split in (("COCO_train2014_1", "train"), ("COCO_train2014_2", "test")):
        save(tmp_path / "images" / f"{stem}.jpg", np.zeros((5, 8, 3), np.uint8))
        write_mat(tmp_path / "annotations" / f"{stem}.mat", matrix("S", ids))
        (tmp_path / "imageLists").mkdir(exist_ok=True)
        (tmp_path / "imageLists" / f"{split}.txt").write_text(f"{stem}\n")
    with pytest.raises(DataError, match=r"COCO_train2014_1\.jpg: picture must have one mask"):
        open_source(DataConfig(root=tmp_path, dataset="coco_stuff_10k"), "train")
    prepare("coco_stuff_10k", tmp_path)
    label = open_source(DataConfig(root=tmp_path, dataset="coco_stuff_10k"), "test").read(0)[1]
    assert label[0, :4].tolist() == [255, 0, 11, 170]


def test_synapse_slices_are_clipped_scaled_and_relabelled(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    values = np.linspace(-1000, 1000, 6 * 5 * 3).reshape(6, 5, 3).astype(np.int16)
    organs = np.resize(np.arange(14), (6, 5, 3)).astype(np.uint8)
    for case in (5, 1):
        write_nifti(tmp_path / f"img/img{case:04d}.nii.gz", values, 4)
        write_nifti(tmp_path / f"label/label{case:04d}.nii.gz", organs, 2)
    prepare("synapse", tmp_path)
    config = DataConfig(root=tmp_path, dataset="synapse")
    train, test = open_source(config, "train"), open_source(config, "test")
    assert len(train) == len(test) == 3
    wanted = np.array([0, 1, 2, 3, 4, 0, 5, 6, 7, 0, 0, 8, 0, 0])[organs]
    for part in range(3):
        image, label = train.read(part)
        share = (np.clip(values[..., part].T, -125, 275).astype(np.float32) + 125) / np.float32(400)
        np.testing.assert_array_equal(image[..., 0], np.floor(share.astype(np.float64) * 255 + 0.5))
        np.testing.assert_array_equal(label, wanted[..., part].T)
        for one, other in zip(test.read(part), (image, label), strict=True):
            np.testing.assert_array_equal(one, other)


def test_nifti_values_are_scaled_as_the_header_says(tmp_path: Path) -> None:
    volume = np.arange(24).reshape(2, 3, 4).astype(np.int16)
    write_nifti(tmp_path / "a.nii.gz", volume, 4, slope=2.0, shift=-1024.0)
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz"), volume * 2.0 - 1024)
    assert nifti_shape(tmp_path / "a.nii.gz") == (2, 3, 4)
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    for broken in (content[:360], content[:100], b"x" * 400, content[:40] + bytes(16) + content[56:]):
        (tmp_path / "b.nii").write_bytes(broken)
        with pytest.raises(DataError, match="complete NIfTI-1 volume"):
            read_nifti(tmp_path / "b.nii")


def test_coco_annotations_become_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"size": [6, 8], "counts": [12, 3, 33]}  # columns first: rows 0 to 2 of column 2
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}],
        "categories": [{"id": 44, "name": "bottle"}, {"id": 3, "name": "car, red"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 44, "segmentation": runs},
            {"id": 2, "image_id": 1, "category_id": 3, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    out = tmp_path / "masks"
    assert main(["data", "coco", str(tmp_path / "instances.json"), str(out)]) == 0
    wanted = np.zeros((6, 8), np.uint8)
    wanted[1:5, 1:6] = 1
    wanted[0:3, 2] = 2  # the smaller object is on top
    np.testing.assert_array_equal(np.array(Image.open(out / "a.png")), wanted)
    assert (out / "classes.csv").read_text() == 'id,name\n0,background\n1,"car, red"\n2,bottle\n'
    content["images"][0]["file_name"] = "../a.jpg"  # type: ignore[index]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert main(["data", "coco", str(tmp_path / "instances.json"), str(out)]) == 3
    assert "not go to a parent" in capsys.readouterr().err


def test_run_lengths_as_text_are_those_as_numbers(tmp_path: Path) -> None:
    runs = [12, 3, 20, 1, 7, 200, 5]
    text = ""
    for place, run in enumerate(runs):  # COCO's packing, written from its description
        value = run - runs[place - 2] if place > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 * more) + 48)
            if not more:
                break
    size = [8, sum(runs) // 8]
    assert sum(runs) % 8 == 0
    found = [rasterise(tmp_path, {"size": size, "counts": counts}, *size) for counts in (text, runs)]
    np.testing.assert_array_equal(*found)
    with pytest.raises(DataError, match="add up to"):
        rasterise(tmp_path, {"size": size, "counts": runs[:-1]}, *size)


def test_sets_without_a_step_and_missing_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of cityscapes_train_ids"):
        prepare("ade20k", tmp_path)
    with pytest.raises(ConfigError, match="did you mean synapse"):
        prepare("synaps", tmp_path)
    for name in ("cityscapes_train_ids", "pascal_context", "pascal_voc_aug", "coco_stuff_10k", "synapse"):
        with pytest.raises(DataError, match="must hold"):
            prepare(name, tmp_path)
