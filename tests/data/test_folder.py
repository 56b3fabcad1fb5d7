"""Finding pictures and masks: layouts, pairing by stem, split lists, and what predict is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from setr_fast.data.layouts.folder import Sample, list_images, scan_split
from setr_fast.data.layouts.lists import is_picture_name, leads_outside, read_split_list, split_name
from setr_fast.data.layouts.scan import samples_of
from setr_fast.data.layouts.splits import describe_layouts, find_splits
from setr_fast.data.options import DataConfig
from setr_fast.errors import DataError


def find_samples(root: Path, split: str, suffix: str = "") -> list[Sample]:
    return samples_of(DataConfig(root=root, mask_suffix=suffix), split)


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def refused(root: Path, split: str = "train", suffix: str = "") -> str:
    with pytest.raises(DataError) as caught:
        find_samples(root, split, suffix)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    return message


@pytest.mark.parametrize(
    ("images", "masks", "listing"),
    [
        ("train/images", "train/masks", None),
        ("train/images", "train/labels", None),
        ("train/images", "train/annotations", None),
        ("images/train", "labels/train", None),
        ("images/train", "masks/train", None),
        ("images/train", "annotations/train", None),
        ("img_dir/train", "ann_dir/train", None),
        ("images", "labels", "train.txt"),
        ("images", "masks", "train.txt"),
        ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt"),
        ("JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext/train.txt"),
    ],
)
def test_layout(tmp_path: Path, images: str, masks: str, listing: str | None) -> None:
    touch(tmp_path, f"{images}/b.jpg", f"{images}/a.JPG", f"{masks}/a.png", f"{masks}/b.PNG")
    if listing is not None:
        touch(tmp_path, listing)
        (tmp_path / listing).write_text("b\na\n")
    samples = find_samples(tmp_path, "train")
    wanted = [
        Sample("a", tmp_path / images / "a.JPG", tmp_path / masks / "a.png"),
        Sample("b", tmp_path / images / "b.jpg", tmp_path / masks / "b.PNG"),
    ]
    assert samples == (wanted if listing is None else wanted[::-1])
    assert find_splits(tmp_path) == ["train"]
    assert images.replace("train", "{split}").split("/")[0].split("{")[0] in describe_layouts()


def test_splits_have_any_name_and_the_usual_ones_come_first(tmp_path: Path) -> None:
    for split in ("night", "validation", "training"):
        touch(tmp_path, f"images/{split}/a.jpg", f"annotations/{split}/a.png")
    touch(tmp_path, "objectInfo150.txt", "images/.cache/a.jpg")
    assert find_splits(tmp_path) == ["training", "validation", "night"]
    assert len(find_samples(tmp_path, "training")) == 1


def test_a_missing_split_says_where_it_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "images/training/a.jpg", "annotations/training/a.png")
    message = refused(tmp_path)
    assert "split 'train' must lie in train/images + train/masks or images/train + labels/train" in message
    assert "got annotations, images" in message
    assert "training" in message.rsplit("; ", 1)[1]


def test_a_missing_root_and_a_bad_split_name(tmp_path: Path) -> None:
    assert "got no such folder" in refused(tmp_path / "none")
    touch(tmp_path, "file")
    assert "got a file" in refused(tmp_path / "file")
    for split in ("", "..", "../x", "a\\b", "."):
        assert "must be a plain name" in refused(tmp_path, split)


def test_pictures_without_a_mask_folder(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.jpg")
    message = refused(tmp_path)
    assert "must have masks in train/masks or train/labels or train/annotations, got train/images alone" in message


def test_one_split_in_two_places_is_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.jpg", "train/masks/a.png", "train/labels/a.png")
    assert "got train/images + train/masks, train/images + train/labels" in refused(tmp_path)


def test_an_empty_folder_and_a_folder_of_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/berlin/a.jpg", "train/masks/a.png")
    assert "must hold pictures, got berlin" in refused(tmp_path)


def test_incomplete_samples_are_all_found(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/images/{stem}.jpg" for stem in "abcd"), "train/images/a.png")
    touch(tmp_path, "train/masks/a.png", "train/masks/b.png", "train/masks/b.tif", "train/masks/d.png")
    touch(tmp_path, "train/masks/orphan.png")
    scan = scan_split(tmp_path, "train")
    assert [sample.name for sample in scan.samples] == ["d"]
    assert [fault.path.name for fault in scan.faults] == ["a.jpg", "b.png", "c.jpg"]
    assert "one picture, got a.jpg and a.png" in scan.faults[0].what
    assert "one mask, got b.png and b.tif" in scan.faults[1].what
    assert "must have a mask 'c.png'" in scan.faults[2].what
    assert [fault.path.name for fault in scan.strays] == ["orphan.png"]
    assert "(2 more faults: run `setr-fast data check" in refused(tmp_path)


def test_mask_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.jpg", "train/images/b.jpg", "train/masks/a_mask.png", "train/masks/b_mask.png")
    assert "set --data.mask-suffix _mask" in refused(tmp_path)
    assert [sample.mask for sample in find_samples(tmp_path, "train", "_mask")] == [
        tmp_path / "train/masks/a_mask.png",
        tmp_path / "train/masks/b_mask.png",
    ]


AWKWARD = [
    " both ends ",
    "with space",
    "a.b.c.v1",
    "...",
    "..%2F..%2Fescape",
    "-rf",
    "[1-3]*?",
    "%s{0}$HOME;ls'\"",
    "CON",
    "\u8857\u666f",
    "\U0001f697",
    "n" * 200,
    "line\nbreak",
]


def test_names_are_plain_text(tmp_path: Path) -> None:
    for stem in AWKWARD:
        touch(tmp_path, f"train/images/{stem}.jpg", f"train/masks/{stem}.png")
    assert {sample.name for sample in find_samples(tmp_path, "train")} == set(AWKWARD)
    assert all(sample.mask == tmp_path / f"train/masks/{sample.name}.png" for sample in find_samples(tmp_path, "train"))
    assert {path.name for path in list_images([tmp_path / "train/images"])} == {f"{stem}.jpg" for stem in AWKWARD}
    (tmp_path / "train/masks/line\nbreak.png").unlink()
    assert "line\\nbreak" in refused(tmp_path)


def test_names_that_are_not_text_are_read_and_shown(tmp_path: Path) -> None:
    touch(tmp_path, "train/masks/x.png", "train/images/\udcff.jpg")
    message = refused(tmp_path)
    message.encode("utf-8")
    assert "\\udcff.jpg" in message


def test_pictures_that_all_stand_twice_are_named_and_not_their_masks(tmp_path: Path) -> None:
    """As where `predict` has put its class maps beside the pictures."""
    for stem in ("a", "b", "c"):
        touch(tmp_path, f"train/images/{stem}.jpg", f"train/images/{stem}.png", f"train/masks/{stem}.png")
    assert "stem 'a' must belong to one picture, got a.jpg and a.png" in refused(tmp_path)


def test_composed_and_decomposed_accents_are_one_stem(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/u\u0308ni.jpg", "train/masks/\u00fcni.png")
    (tmp_path / "train.txt").write_text("\u00fcni\n", encoding="utf-8")
    assert [sample.name for sample in find_samples(tmp_path, "train")] == ["u\u0308ni"]


def test_hidden_and_foreign_files_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.jpg", "train/images/.b.jpg", "train/images/Thumbs.db", "train/images/c.txt")
    touch(tmp_path, "train/masks/a.png", "train/masks/.DS_Store", "train/masks/a.json", "train/masks/._a.png")
    assert [sample.name for sample in find_samples(tmp_path, "train")] == ["a"]
    assert list_images([tmp_path / "train/images"]) == [tmp_path / "train/images/a.jpg"]


@pytest.mark.parametrize(
    ("name", "stem", "suffix", "picture"),
    [
        ("a.jpg", "a", ".jpg", True),
        ("....jpg", "...", ".jpg", True),
        ("...jpg", "..", ".jpg", True),
        (".jpg", ".jpg", "", False),
        (".hidden.jpg", ".hidden", ".jpg", False),
        ("a", "a", "", False),
        ("a.", "a", ".", False),
        ("a.v1.JPEG", "a.v1", ".JPEG", True),
        ("a.mp4", "a", ".mp4", False),
    ],
)
def test_stem_and_suffix(name: str, stem: str, suffix: str, picture: bool) -> None:
    assert split_name(name) == (stem, suffix)
    assert is_picture_name(name) == picture


def test_a_link_to_nothing_is_kept_for_the_reader_to_complain_about(tmp_path: Path) -> None:
    touch(tmp_path, "train/masks/a.png", "train/images/b.jpg", "train/masks/b.png")
    (tmp_path / "train/images/a.jpg").symlink_to(tmp_path / "gone.jpg")
    assert [sample.name for sample in find_samples(tmp_path, "train")] == ["a", "b"]


# ---- split lists ----------------------------------------------------------------------------------------------------


def listed(tmp_path: Path, content: bytes) -> list[str]:
    for stem in ("a", "b", "c d", "e.v1"):
        touch(tmp_path, f"images/train/{stem}.jpg", f"labels/train/{stem}.png")
    (tmp_path / "train.txt").write_bytes(content)
    return [sample.name for sample in find_samples(tmp_path, "train")]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"b\na\n", ["b", "a"]),
        (b"b\r\na\r\n", ["b", "a"]),
        (b"b\ra", ["b", "a"]),
        (b"\xef\xbb\xbfa\n\n  b \t\n", ["a", "b"]),
        (b"c d\ne.v1\na.jpg\n", ["c d", "e.v1", "a"]),
        (b"images/train/a.jpg labels/train/b.png\n", ["a"]),
        (b"images/train/c d.jpg\tlabels/train/c d.png\nb", ["c d", "b"]),
    ],
)
def test_list_is_read(tmp_path: Path, content: bytes, names: list[str]) -> None:
    assert listed(tmp_path, content) == names


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "at least one sample"),
        (b"\n \n", "at least one sample"),
        (b"a\nb\na\n", "line 3 must name a sample once, got 'a' again after line 1"),
        (b"a\nnone\n", "line 2 must name a picture in train, got 'none'"),
        (b"a\n\xff\n", "line 2 must be UTF-8"),
        ("a\nb\n".encode("utf-16"), "line 1 must be UTF-8"),
        (b"a\0b\n", "control characters"),
        (b"train/a\n", "be a stem"),
        (b"../a\n", "not go to a parent"),
        (b"/etc/passwd\n", "not be absolute"),
        (b"C:\\a.jpg\n", "not a drive"),
        (b"~/a\n", "home folder"),
        (b"http://x/a.jpg\n", "not an address"),
        (b"images/train/a.jpg ../x.png\n", "not go to a parent"),
        (b"images/train/none.jpg labels/train/a.png\n", "'images/train/none.jpg', which is not there"),
    ],
)
def test_bad_list_names_the_line(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        listed(tmp_path, content)
    assert str(tmp_path / "train.txt") in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_cannot_leave_the_root_through_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "outside/a.jpg", "outside/a.png", "root/images/b.jpg", "root/labels/b.png")
    (tmp_path / "root/images/away").symlink_to(tmp_path / "outside")
    (tmp_path / "root/train.txt").write_text("images/away/a.jpg labels/b.png\n")
    assert "a link that leads outside" in refused(tmp_path / "root")


def test_every_way_out_of_the_root_is_refused_while_reading_the_list(tmp_path: Path) -> None:
    lines = ["../../etc/passwd a.png", "/etc/passwd.png /etc/x.png", "..\\x", "~/x", "file:///x", "a/../../../x"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    entries, faults = read_split_list(tmp_path / "list.txt")
    assert entries == []
    assert len(faults) == len(lines)
    assert leads_outside("a..b/c...d") == ""
    assert leads_outside("a/..") != ""


def test_what_a_list_leaves_out_is_reported_but_does_not_stop(tmp_path: Path) -> None:
    assert listed(tmp_path, b"a\n") == ["a"]
    touch(tmp_path, "images/train/no_mask.jpg", "labels/train/no_picture.png")
    scan = scan_split(tmp_path, "train")
    assert scan.faults == []
    assert {fault.path.name for fault in scan.strays} == {"no_mask.jpg", "no_picture.png"}


# ---- inputs of predict ----------------------------------------------------------------------------------------------


def test_inputs_keep_their_order_and_folders_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "f/b.png", "f/a.JPG", "f/.h.png", "f/sub/c.png", "f/note.txt", "odd.heic")
    found = list_images([tmp_path / "z.jpg", tmp_path / "f", tmp_path / "odd.heic", tmp_path / "f/.h.png"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "z.jpg",
        "f/a.JPG",
        "f/b.png",
        "odd.heic",
        "f/.h.png",
    ]
    assert list_images([tmp_path / "f/a.JPG", tmp_path / "f"])[1:] == [tmp_path / "f/b.png"]


def test_inputs_that_are_not_there_or_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list_images([tmp_path / "*.jpg"])
    with pytest.raises(DataError, match="must hold pictures, got nothing"):
        list_images([tmp_path])
