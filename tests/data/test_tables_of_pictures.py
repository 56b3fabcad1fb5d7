"""Parquet and Arrow files of the ``datasets`` library, and folders with metadata.jsonl."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.checks.check import check_folder
from setr_fast.data.options import DataConfig
from setr_fast.data.source import open_source
from setr_fast.errors import ConfigError, DataError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)


def mask(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, (6, 8), np.uint8)


def table(
    seeds: range, image: str = "image", label: str = "annotation", bare: bool = False, paths: bool = True
) -> object:
    def cells(make: object, end: str) -> list:
        return [
            png(make(seed)) if bare else {"bytes": png(make(seed)), "path": f"{end}_{seed}.png" if paths else None}  # type: ignore[operator]
            for seed in seeds
        ]

    return arrow.table({image: cells(picture, "scene"), label: cells(mask, "mask"), "note": ["x"] * len(seeds)})


def assert_read(config: DataConfig, split: str, count: int) -> list[str]:
    source = open_source(config, split)
    assert len(source) == count
    for index in reversed(range(count)):
        image, label = source.read(index)
        np.testing.assert_array_equal(image, picture(index))
        np.testing.assert_array_equal(label, mask(index))
    return list(source.names)


@pytest.mark.parametrize("folder", ["", "data", "train"])
def test_parquet_shards_are_one_split(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    parquet.write_table(table(range(5)), place / "train-00000-of-00002.parquet", row_group_size=2)
    parquet.write_table(table(range(5, 7)), place / "train-00001-of-00002.parquet")
    names = assert_read(DataConfig(root=tmp_path, num_classes=3), "train", 7)
    assert names == [f"scene_{seed}" for seed in range(7)]


def test_bare_bytes_and_named_columns(tmp_path: Path) -> None:
    parquet.write_table(table(range(3), "photo", "truth", bare=True), tmp_path / "train.parquet")
    config = DataConfig(root=tmp_path, num_classes=3, image_column="photo", label_column="truth")
    assert assert_read(config, "train", 3) == ["train_0", "train_1", "train_2"]
    with pytest.raises(DataError, match="column of pictures, called image or img or picture, got photo, truth, note"):
        open_source(DataConfig(root=tmp_path, num_classes=3), "train").read(0)


@pytest.mark.parametrize("kind", ["new_stream", "new_file"])
def test_arrow_files_that_save_to_disk_writes(tmp_path: Path, kind: str) -> None:
    content = table(range(4), paths=False)
    (tmp_path / "train").mkdir()
    place = str(tmp_path / "train/data-00000-of-00001.arrow")
    with arrow.OSFile(place, "wb") as sink, getattr(arrow.ipc, kind)(sink, content.schema) as writer:  # type: ignore[attr-defined]
        writer.write_table(content, max_chunksize=3)
    (tmp_path / "train/state.json").write_text("{}")
    assert_read(DataConfig(root=tmp_path, num_classes=3), "train", 4)


def test_the_library_itself_writes_what_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [Image.fromarray(picture(s)) for s in range(3)],
        "label": [Image.fromarray(mask(s)) for s in range(3)],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(tmp_path / "validation.parquet")
    made.save_to_disk(tmp_path / "train")
    for split in ("train", "validation"):
        assert_read(DataConfig(root=tmp_path, num_classes=3, val_split="validation"), split, 3)


def test_threads_read_one_file_together(tmp_path: Path) -> None:
    parquet.write_table(table(range(40)), tmp_path / "train.parquet", row_group_size=3)
    source = open_source(DataConfig(root=tmp_path, num_classes=3), "train")
    order = [int(i) for i in np.random.default_rng(0).permutation(np.arange(40).repeat(3))]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(source.read, order))
    assert all((image == picture(index)).all() for index, (image, _) in zip(order, found, strict=True))


def test_check_finds_what_is_wrong_in_a_row(tmp_path: Path) -> None:
    cells = [{"bytes": png(picture(s)), "path": f"{s}.png"} for s in range(3)]
    cells[1]["bytes"] = cells[1]["bytes"][:-30]
    labels = [{"bytes": png(mask(s)), "path": None} for s in range(3)]
    labels[2] = {"bytes": None, "path": "elsewhere.png"}
    parquet.write_table(arrow.table({"image": cells, "label": labels}), tmp_path / "train.parquet")
    parquet.write_table(arrow.table({"image": cells[:1], "label": labels[:1]}), tmp_path / "val.parquet")
    report = check_folder(DataConfig(root=tmp_path, num_classes=3))
    found = {str(fault.path).rpartition("/")[2]: fault.what for fault in report.errors}
    assert set(found) == {"train.parquet#1", "train.parquet"}
    assert "complete" in found["train.parquet#1"]
    assert "row 2: column 'label' must hold the bytes of a picture file" in found["train.parquet"]
    assert [facts.pairs for facts in report.splits] == [3, 1]


def test_a_column_is_asked_of_a_table_alone(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        (tmp_path / "train" / kind / "a.png").write_bytes(png(mask(0)))
    assert len(open_source(DataConfig(root=tmp_path, num_classes=3), "train")) == 1
    with pytest.raises(ConfigError, match="label_column must name columns of a table, got none"):
        open_source(DataConfig(root=tmp_path, num_classes=3, label_column="mask"), "train")


def test_damaged_table_is_named(tmp_path: Path) -> None:
    parquet.write_table(table(range(2)), tmp_path / "train.parquet")
    content = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(content[:-40])
    with pytest.raises(DataError, match=r"train\.parquet: must be a complete table"):
        open_source(DataConfig(root=tmp_path, num_classes=3), "train")


def test_metadata_lines_pair_pictures_and_masks(tmp_path: Path) -> None:
    lines = []
    for seed in range(3):
        for folder, array in (("pictures", picture(seed)), ("truth", mask(seed))):
            (tmp_path / "train" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "train" / folder / f"{seed}.png")
        lines.append({"file_name": f"pictures/{seed}.png", "label_file_name": f"truth/{seed}.png", "text": "x"})
    listing = tmp_path / "train" / "metadata.jsonl"
    listing.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert assert_read(DataConfig(root=tmp_path, num_classes=3), "train", 3) == [f"pictures_{s}" for s in range(3)]
    for line, words in (
        ('{"file_name": "../../x.png", "label": "y.png"}', "not go to a parent"),
        ('{"file_name": "pictures/0.png"}', "name its mask"),
        ('{"file_name": "pictures/9.png", "label": "truth/0.png"}', "name files that are there"),
        (json.dumps(lines[0]), "name a sample once"),
        ("[1]", "be a JSON object"),
    ):
        listing.write_text(json.dumps(lines[0]) + "\n" + line)
        with pytest.raises(DataError, match=f"line 2 must {words}|line 2 must .*{words}"):
            open_source(DataConfig(root=tmp_path, num_classes=3), "train")
