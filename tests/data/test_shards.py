"""Shards: the same samples as the folder they were written from, in an order that nothing but the seed decides."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from setr_fast.cli import main
from setr_fast.data.loader import Batch, step_keys, train_batches
from setr_fast.data.options import AugmentConfig, DataConfig
from setr_fast.data.shards.index import Endings, read_index
from setr_fast.data.shards.source import ShardSource
from setr_fast.data.shards.write import write_shards
from setr_fast.data.source import FolderSource, open_source
from setr_fast.data.transforms import TrainTransform
from setr_fast.errors import ConfigError, DataError

TRANSFORM = TrainTransform(AugmentConfig(crop=(24, 24)), (127.5,) * 3, (127.5,) * 3)


def png(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG")
    return held.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make_folder(root: Path, count: int) -> Path:
    """Pictures of 32 x 40 pixels, every third a JPEG; ids 1, 2 and 9, of which the table ignores the last."""
    chance = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        for number in range(count if split == "train" else 3):
            pixels = chance.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            ids = chance.choice(np.array([1, 2, 9], np.uint8), (32, 40), p=(0.4, 0.4, 0.2))
            kind, content = (".jpg", jpeg(pixels)) if number % 3 == 0 else (".png", png(pixels))
            (root / split / "images" / f"a.{number:02d}{kind}").write_bytes(content)
            (root / split / "masks" / f"a.{number:02d}.png").write_bytes(png(ids))
    rows = "id,name,r,g,b,ignore\n1,one,1,1,1,0\n2,two,2,2,2,0\n" + "".join(
        f"{value},x{value},{value},0,0,1\n" for value in range(3, 10)
    )
    (root / "classes.csv").write_text(rows)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "folder", 22)


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shards"
    list(write_shards(DataConfig(root=folder), out, (), 20_000))
    return out


def _source(shards: Path, **options: Any) -> ShardSource:
    return ShardSource(DataConfig(shards=str(shards), **options), "train")


def _same(actual: list[Batch], expected: list[Batch]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.names == other.names
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)


def test_shards_hold_what_the_folder_held(folder: Path, shards: Path) -> None:
    assert len(list(shards.glob("train-*.tar"))) > 3
    assert all(file.stat().st_size < 32_000 for file in shards.glob("*.tar"))
    for split in ("train", "val"):
        plain, packed = (open_source(c, split) for c in (DataConfig(root=folder), DataConfig(shards=str(shards))))
        assert packed.classes.names == plain.classes.names == ("one", "two")
        assert packed.classes.palette == plain.classes.palette
        assert len(packed) == len(plain)
        for index in range(len(plain)):
            for one, other in zip(packed.read(index), plain.read(index), strict=True):
                assert np.array_equal(one, other)
        assert [name[-4:] for name in packed.names] == [name[-4:].replace(".", "_") for name in plain.names]


def test_pictures_are_the_files_themselves(folder: Path, shards: Path) -> None:
    plain = FolderSource(DataConfig(root=folder), "train")
    index, number = _source(shards).locate(3)
    assert index.read(number)[0] == plain.samples[3].image.read_bytes()


def test_every_sample_comes_once_per_epoch_a_few_shards_at_a_time(shards: Path) -> None:
    source = _source(shards, shard_mix=2)
    count = len(source)
    orders = []
    for epoch in range(3):
        order = [source.at(5, epoch, place) for place in range(count)]
        assert sorted(order) == list(range(count))
        orders.append(order)
        owner = np.repeat(np.arange(len(source.counts)), source.counts)[order]
        seen = [frozenset(owner[place : place + 2].tolist()) for place in range(count)]
        last = {shard: int(np.flatnonzero(owner == shard)[-1]) for shard in owner}
        first = {shard: int(np.flatnonzero(owner == shard)[0]) for shard in owner}
        open_at = [sum(first[s] <= place <= last[s] for s in first) for place in range(count)]
        assert max(open_at) <= 2
        assert any(len(pair) == 2 for pair in seen)
    assert len({tuple(order) for order in orders}) == 3
    assert [source.at(6, 0, place) for place in range(count)] != orders[0]


def test_the_order_never_changes(shards: Path) -> None:
    """Figures of the first release: resumed runs of later ones must find the same samples."""
    source = _source(shards, shard_mix=2)
    source.counts = (5, 4, 6, 3)
    assert [source.at(7, 1, place) for place in range(18)] == [
        3,
        15,
        1,
        4,
        0,
        16,
        17,
        2,
        7,
        8,
        5,
        9,
        14,
        6,
        10,
        11,
        12,
        13,
    ]


def test_steps_can_be_made_first_by_any_rank_and_worker(shards: Path) -> None:
    source = _source(shards, shard_mix=2)
    options: dict[str, Any] = {"batch_size": 4, "seed": 3, "last_step": 9}
    whole = list(train_batches(source, TRANSFORM, first_step=0, **options))
    fresh = _source(shards, shard_mix=2)
    _same(list(train_batches(fresh, TRANSFORM, first_step=6, **options)), whole[6:])
    _same(list(train_batches(fresh, TRANSFORM, first_step=4, workers=1, **options)), whole[4:])
    halves = [
        list(train_batches(fresh, TRANSFORM, first_step=0, rank=rank, world_size=2, **options)) for rank in (0, 1)
    ]
    for step, batch in enumerate(whole):
        for rank in (0, 1):
            assert torch.equal(halves[rank][step].image, batch.image[rank::2])
    keys = step_keys(5, batch_size=4, count=len(source), seed=3, at=source.at)
    assert [source.names[index] for _, index in keys] == whole[5].names


def test_a_step_opens_only_the_shards_that_it_needs(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def noted(shown: str, *rest: Any) -> Any:
        opened.append(shown)
        return read_index(shown, *rest)

    monkeypatch.setattr("setr_fast.data.shards.source.read_index", noted)
    source = _source(shards, shard_mix=1)
    next(train_batches(source, TRANSFORM, batch_size=2, seed=0, first_step=900, last_step=901))
    assert 1 <= len(opened) <= 2
    fresh = _source(shards, shard_mix=1)
    assert len(pickle.dumps(source)) == len(pickle.dumps(fresh)), "workers get the list, not the indices"


@pytest.mark.parametrize("spec", ["train.json", "train-{000000..000002}.tar", "train-*.tar"])
def test_patterns_and_indices(shards: Path, spec: str) -> None:
    config = DataConfig(shards=str(shards / spec), val_shards=str(shards / "val.json"))
    expected = len(list(shards.glob("train-*.tar"))) if "*" in spec or "json" in spec else 3
    assert len(ShardSource(config, "train").counts) == expected
    assert len(ShardSource(config, "val")) == 3


def test_without_an_index_headers_are_counted(shards: Path, tmp_path: Path) -> None:
    for file in [*shards.glob("train-*.tar"), shards / "classes.csv"]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = DataConfig(shards=str(tmp_path / "train-*.tar"))
    assert ShardSource(config, "train").counts == _source(shards).counts
    with pytest.raises(ConfigError, match=r"data.val_shards: must be given for split 'val'"):
        ShardSource(config, "val")


PAIR = (png(np.zeros((4, 4, 3), np.uint8)), png(np.zeros((4, 4), np.uint8)))


@pytest.mark.parametrize(
    ("members", "chosen"),
    [
        (["jpg", "png", "json", "txt"], ("jpg", "png")),
        (["png", "mask.png"], ("png", "mask.png")),
        (["image.jpg", "seg.png", "thumb.cls"], ("image.jpg", "seg.png")),
        (["JPG", "Seg.PNG"], ("jpg", "seg.png")),
    ],
)
def test_pictures_and_masks_are_told_by_their_names(
    tmp_path: Path, members: list[str], chosen: tuple[str, str]
) -> None:
    file = write_tar(tmp_path / "a.tar", [(f"dir/k.{ending}", b"x") for ending in members])
    index = read_index("a.tar", file, Endings())
    assert index.keys == ["dir/k"]
    assert index.endings == [chosen]


@pytest.mark.parametrize(
    "members", [["png", "tif"], ["jpg"], ["jpg", "a.png", "b.png"], ["mask.png", "seg.png", "jpg"]]
)
def test_members_that_may_be_either_are_asked_about(tmp_path: Path, members: list[str]) -> None:
    file = write_tar(tmp_path / "a.tar", [(f"k.{ending}", b"x") for ending in members])
    with pytest.raises(
        DataError, match=r"a.tar: sample 'k' must have one picture and one mask, got .*--data.shard-mask"
    ):
        read_index("a.tar", file, Endings())
    if len(members) > 1:
        assert read_index("a.tar", file, Endings(members[0], members[1])).endings == [(members[0], members[1])]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def _no_end(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content.rstrip(b"\0")) // 512 * 512 + 512])


def _damaged_header(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[1024:1034] = b"XXXXXXXXXX"  # the name in the second header
    file.write_bytes(bytes(content))


def _compressed(file: Path) -> None:
    with tarfile.open(file, "w:gz"):
        pass


@pytest.mark.parametrize("damage", [_cut, _no_end, _damaged_header, _compressed, lambda file: file.write_bytes(b"")])
def test_a_shard_that_is_not_whole_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    file = write_tar(
        tmp_path / "a.tar", [("k.jpg", PAIR[0]), ("k.png", PAIR[1]), ("l.jpg", PAIR[0]), ("l.png", PAIR[1])]
    )
    damage(file)
    with pytest.raises(
        DataError, match=r"^a.tar: shard must be a whole, uncompressed tar, got '.*'; fetch or write"
    ) as e:
        read_index("a.tar", file, Endings())
    assert "\n" not in str(e.value)


def test_a_sample_that_is_torn_apart_is_refused(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", [("k.jpg", b"x"), ("l.jpg", b"x"), ("k.png", b"x"), ("l.png", b"x")])
    with pytest.raises(DataError, match="must have one picture and one mask"):
        read_index("a.tar", file, Endings())
    file = write_tar(tmp_path / "b.tar", [(n, b"x") for n in ("k.jpg", "k.png", "l.jpg", "l.png", "k.jpg", "k.png")])
    with pytest.raises(DataError, match="members of a sample must stand together and keys must differ, got 'k' again"):
        read_index("b.tar", file, Endings())


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as tar:
        for name, kind in (
            ("dir", tarfile.DIRTYPE),
            ("dir/link.png", tarfile.SYMTYPE),
            ("dir/hard.png", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("__note__", "README", "dir/k.jpg", "dir/k.png"):
            tar.addfile(tarfile.TarInfo(name))
    assert read_index("a.tar", file, Endings()).keys == ["dir/k"]


def test_a_broken_sample_is_named_by_its_shard(tmp_path: Path) -> None:
    other = png(np.zeros((4, 5), np.uint8))
    for number, (picture, mask) in enumerate([(b"no picture", PAIR[1]), (PAIR[0], other), (PAIR[0], PAIR[0])]):
        write_tar(tmp_path / f"t-{number}.tar", [("k.png", picture), ("k.mask.png", mask)])
    source = ShardSource(DataConfig(shards=str(tmp_path / "t-{0..2}.tar"), num_classes=2), "train")
    for index, match in enumerate(
        ["t-0.tar/k.png: ", "t-1.tar/k.mask.png: mask must be as large", "t-2.tar/k.mask.png: "]
    ):
        with pytest.raises(DataError, match=match):
            source.read(index)


def test_an_index_that_is_wrong_is_noticed(shards: Path, tmp_path: Path) -> None:
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = json.loads((tmp_path / "train.json").read_text())
    table["shardlist"][0]["nsamples"] += 1
    (tmp_path / "train.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"train-000000.tar: shard must hold \d+ samples as its index says, got"):
        _source(tmp_path).read(0)
    (tmp_path / "train.json").write_text('{"shardlist": [{"nsamples": 3}]}')
    with pytest.raises(DataError, match="an index must be JSON with a 'shardlist'"):
        _source(tmp_path)
    (tmp_path / "train.json").unlink()
    with pytest.raises(DataError, match="an index of shards must be there, got no such file"):
        _source(tmp_path)
    with pytest.raises(ConfigError, match="must name files, got none"):
        _source(tmp_path / "absent-*.tar")


def test_written_from_the_command_line_and_checked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["data", "shards", str(folder), str(out), "--mib", "1"]) == 0
    assert "train: 22 samples, 1 shards" in capsys.readouterr().out
    assert main(["data", "check", "--data.shards", str(out)]) == 0
    text = capsys.readouterr().out
    assert "2 classes" in text
    assert "train: 22 pairs, 40 x 32 pixels" in text
    assert "no faults found" in text
    assert main(["data", "shards", str(folder), str(out)]) == 2
    index = read_index(str(out / "val-000000.tar"), out / "val-000000.tar", Endings())
    content = bytearray((out / "val-000000.tar").read_bytes())
    start = int(index.places[1][0])
    content[start : start + 8] = b"nothing!"
    (out / "val-000000.tar").write_bytes(bytes(content))
    assert main(["data", "check", "--data.shards", str(out)]) == 3
    assert f"error: {out}/val-000000.tar/{index.keys[1]}.png: " in capsys.readouterr().out


def test_what_cannot_be_written_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    broken = make_folder(tmp_path / "broken", 4)
    (broken / "train" / "images" / "a.01.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a.01.png"):
        list(write_shards(DataConfig(root=broken), tmp_path / "out", (), 2**20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]
