"""Every row of the shared table of bad and odd inputs has one written outcome, and gets it."""

from __future__ import annotations

import csv
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from setr_fast.data.checks.check import check_folder
from setr_fast.data.classes import read_class_table
from setr_fast.data.formats.decode import image_header, load_mask, read_image
from setr_fast.data.layouts.folder import list_images
from setr_fast.data.layouts.scan import samples_of
from setr_fast.data.options import DataConfig
from setr_fast.data.source import FolderSource
from setr_fast.errors import DataError

WHOLE = "240x160"
IDS = "0 1 3 8 11"
LONG = "n" * 200

# file -> (outcome, reason).
#   accept  pictures: width x height seen upright; pairs: ids read; lists and class tables: entries
#   refuse  words of the message that a DataError names the file with
#   skip    not found by a folder scan, read when named
#   warn    accepted, and `data check` warns with these words
EXPECTED: dict[str, tuple[str, str]] = {
    "images/truncated_half.jpg": ("refuse", "must be complete"),
    "images/truncated_tail.jpg": ("refuse", "must be complete"),
    "images/truncated_header.jpg": ("refuse", "must be a complete, undamaged picture"),
    "images/truncated.png": ("refuse", "must be a complete PNG"),
    "images/corrupt_crc.png": ("refuse", "must match its checksums"),
    "images/zero_byte.jpg": ("refuse", "got 0 bytes"),
    "images/zero_byte.png": ("refuse", "got 0 bytes"),
    "images/text_file.png": ("refuse", "got plain text"),
    "images/html_error_page.jpg": ("refuse", "got a web page"),
    "images/random_bytes.jpg": ("refuse", "no known picture format"),
    "images/lfs_pointer.png": ("refuse", "git lfs pull"),
    "images/bomb_header_60000x60000.png": ("refuse", "at most 200000000 pixels"),
    "images/zero_size_header.png": ("refuse", "got 0 x"),
    "images/gray16.png": ("accept", WHOLE),
    "images/rgb16.png": ("accept", WHOLE),
    "images/gray8.jpg": ("accept", WHOLE),
    "images/gray8.png": ("accept", WHOLE),
    "images/bilevel1.png": ("accept", WHOLE),
    "images/gray_alpha.png": ("accept", WHOLE),
    "images/rgba_gradient_alpha.png": ("accept", WHOLE),
    "images/rgba_fully_transparent.png": ("accept", WHOLE),
    "images/palette.png": ("accept", WHOLE),
    "images/palette_transparent.png": ("accept", WHOLE),
    "images/cmyk.jpg": ("accept", WHOLE),
    "images/progressive.jpg": ("accept", WHOLE),
    "images/trailing_garbage.jpg": ("accept", WHOLE),
    "images/really_png.jpg": ("accept", WHOLE),
    "images/really_jpeg.png": ("accept", WHOLE),
    "images/upper_case_suffix.JPG": ("accept", WHOLE),
    "images/suffix_jpeg.jpeg": ("accept", WHOLE),
    "images/picture.webp": ("accept", WHOLE),
    "images/picture.bmp": ("accept", WHOLE),
    "images/float32.tif": ("refuse", "floating-point"),
    "images/animated.gif": ("accept", "120x80"),
    "images/size_1x1.png": ("accept", "1x1"),
    "images/size_511x1.png": ("accept", "511x1"),
    "images/size_5000x3_panorama.png": ("accept", "5000x3"),
    "images/size_3x5000_tower.png": ("accept", "3x5000"),
    "images/size_odd_223x97.jpg": ("accept", "223x97"),
    "images/size_8000x6000.jpg": ("accept", "8000x6000"),
    "images/all_black.png": ("accept", "300x200"),
    "images/all_white.png": ("accept", "300x200"),
    "exif/upright_reference.png": ("accept", "96x64"),
    "exif/orientation_1.jpg": ("accept", "96x64"),
    "exif/orientation_2.jpg": ("accept", "96x64"),
    "exif/orientation_3.jpg": ("accept", "96x64"),
    "exif/orientation_4.jpg": ("accept", "96x64"),
    "exif/orientation_5.jpg": ("accept", "96x64"),
    "exif/orientation_6.jpg": ("accept", "96x64"),
    "exif/orientation_7.jpg": ("accept", "96x64"),
    "exif/orientation_8.jpg": ("accept", "96x64"),
    "exif/orientation_9_invalid.jpg": ("accept", "96x64"),
    "exif/exif_corrupt.jpg": ("accept", "96x64"),
    "names/with space.jpg": ("accept", "96x64"),
    "names/ leading and trailing .jpg": ("accept", "96x64"),
    "names/\u00fcn\u00efc\u00f6d\u00e9_Stra\u00dfe.jpg": ("accept", "96x64"),
    "names/u\u0308ni_decomposed.jpg": ("accept", "96x64"),
    "names/\u8857\u666f_001.jpg": ("accept", "96x64"),
    "names/emoji_\U0001f697.jpg": ("accept", "96x64"),
    'names/quote\'s "double" & $HOME;ls.jpg': ("accept", "96x64"),
    "names/percent%20%s%d{0}.jpg": ("accept", "96x64"),
    "names/many.dots.in.name.v1.jpg": ("accept", "96x64"),
    "names/-rf.jpg": ("accept", "96x64"),
    "names/.hidden.jpg": ("skip", "hidden"),
    "names/....jpg": ("accept", "96x64"),
    "names/..%2F..%2Fescape.jpg": ("accept", "96x64"),
    "names/CON.jpg": ("accept", "96x64"),
    f"names/{LONG}.jpg": ("accept", "96x64"),
    "names/[1-3]*?.jpg": ("accept", "96x64"),
    "pairs/labels/ok_palette.png": ("accept", IDS),
    "pairs/labels/ok_gray.png": ("accept", IDS),
    "pairs/labels/size_smaller.png": ("refuse", "128 x 96 seen upright, got 64 x 48"),
    "pairs/labels/size_transposed.png": ("refuse", "128 x 96 seen upright, got 96 x 128"),
    "pairs/labels/size_off_by_one.png": ("refuse", "128 x 96 seen upright, got 127 x 96"),
    "pairs/labels/ids_out_of_range.png": ("refuse", "got 200 (100 pixels)"),
    "pairs/labels/ids_off_by_one.png": ("refuse", "got 12 (1 pixels)"),
    "pairs/labels/ids_with_255.png": ("accept", f"{IDS} 255"),
    "pairs/labels/ids_all_ignore.png": ("warn", "got ignored ones only"),
    "pairs/labels/ids_single_class.png": ("accept", "3"),
    "pairs/labels/rgb_colours.png": ("refuse", "--data.mask-colours rgb"),
    "pairs/labels/rgba_colours.png": ("refuse", "--data.mask-colours rgb"),
    "pairs/labels/gray_alpha.png": ("refuse", "without alpha"),
    "pairs/labels/ids_16bit.png": ("accept", IDS),
    "pairs/labels/ids_16bit_instance.png": ("refuse", "11007"),
    "pairs/labels/one_bit.png": ("accept", "0 1"),
    "pairs/labels/binary_0_255.png": ("warn", "got the ids 0 and 255 alone"),
    "pairs/labels/palette_4bit.png": ("accept", IDS),
    "pairs/labels/palette_transparent.png": ("accept", IDS),
    "pairs/labels/palette_reordered.png": ("warn", "in the colour of another class"),
    "pairs/labels/lossy_mask.jpg": ("refuse", "without loss"),
    "pairs/labels/truncated_mask.png": ("refuse", "must be a complete PNG"),
    "pairs/labels/empty_mask.png": ("refuse", "got 0 bytes"),
    "pairs/images/missing_mask.jpg": ("refuse", "must have a mask 'missing_mask.png'"),
    "pairs/labels/mask_without_image.png": ("refuse", "must have a picture"),
    "pairs/labels/image_broken.png": ("refuse", "images/image_broken.jpg: must be complete"),
    "pairs/images/duplicate_stem.png": ("refuse", "got duplicate_stem.jpg and duplicate_stem.png"),
    "pairs/labels/exif6.png": ("accept", IDS),
    "pairs/labels/exif6_raw_mask.png": ("refuse", "128 x 96 seen upright, got 96 x 128"),
    "pairs/labels/exif3_square.png": ("accept", IDS),
    "lists/path_traversal.txt": ("refuse", "line 2 must stay below the data folder"),
    "lists/crlf.txt": ("accept", "2"),
    "lists/bom.txt": ("accept", "2"),
    "lists/blank_lines_and_spaces.txt": ("accept", "2"),
    "lists/duplicates.txt": ("refuse", "line 3 must name a sample once"),
    "lists/missing_entry.txt": ("refuse", "'does_not_exist'"),
    "lists/empty.txt": ("refuse", "at least one sample"),
    "lists/no_newline_at_end.txt": ("accept", "2"),
    "lists/latin1.txt": ("refuse", "line 2 must be UTF-8"),
    "lists/two_columns.txt": ("accept", "2"),
    "classes/dup_names.csv": ("refuse", "line 3: names must differ"),
    "classes/gap_ids.csv": ("refuse", "no row for id 1"),
    "classes/bad_colour.csv": ("refuse", "line 2: b must be 0..255, got 300"),
    "classes/dup_colours.csv": ("accept", "2"),
    "classes/empty.csv": ("refuse", "at least one class"),
}


def rows(*folders: str) -> list[str]:
    return [file for file in EXPECTED if file.split("/")[0] in folders]


@pytest.fixture(scope="module")
def hostile(shared: Path) -> Path:
    return shared / "data" / "hostile"


def assert_one_line(message: str, name: str, words: str) -> None:
    assert "\n" not in message
    assert name in message
    assert words in message
    assert "; " in message, "a message ends with what to do"
    assert message.rsplit("; ", 1)[1].strip()


def test_every_row_of_the_manifest_has_an_outcome(hostile: Path) -> None:
    with (hostile / "manifest.csv").open(encoding="utf-8", newline="") as file:
        manifest = [row["file"] for row in csv.DictReader(file)]
    assert len(manifest) == len(EXPECTED) == 114
    assert set(manifest) == set(EXPECTED)
    tested = rows("images", "exif", "names") + rows("pairs") + rows("lists") + rows("classes")
    assert sorted(tested) == sorted(EXPECTED)


@pytest.mark.parametrize("file", rows("images", "exif", "names"))
def test_picture(hostile: Path, file: str) -> None:
    outcome, reason = EXPECTED[file]
    path = hostile / file
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of the decoder would reach the user
        if outcome == "refuse":
            with pytest.raises(DataError) as caught:
                read_image(path)
            assert_one_line(str(caught.value), path.name, reason)
            return
        pixels = read_image(path)
        header = image_header(path)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (header.height, header.width, 3)
    assert f"{header.width}x{header.height}" == ("96x64" if outcome == "skip" else reason)
    assert (path in list_images([path.parent])) == (outcome == "accept")
    assert list_images([path]) == [path]


def test_declared_size_is_refused_before_anything_is_allocated(hostile: Path) -> None:
    started = time.perf_counter()
    for read in (read_image, load_mask, image_header):
        with pytest.raises(DataError, match="3600000000"):
            read(hostile / "images/bomb_header_60000x60000.png")
    assert time.perf_counter() - started < 0.5


def test_odd_colour_modes_show_the_same_picture(hostile: Path) -> None:
    whole = read_image(hostile / "images/really_png.jpg").astype(int)
    for name, most in (
        ("rgb16.png", 1),
        ("rgba_gradient_alpha.png", 0),
        ("rgba_fully_transparent.png", 0),
        ("palette.png", 16),
        ("palette_transparent.png", 16),
        ("cmyk.jpg", 10),
        ("really_jpeg.png", 6),
        ("picture.webp", 8),
        ("picture.bmp", 0),
    ):
        assert np.abs(read_image(hostile / "images" / name) - whole).mean() <= most, name
    grey = read_image(hostile / "images/gray8.png")
    assert np.array_equal(grey, read_image(hostile / "images/gray_alpha.png"))
    assert np.abs(grey.astype(int) - read_image(hostile / "images/gray16.png")).max() <= 1
    assert set(np.unique(read_image(hostile / "images/bilevel1.png"))) == {0, 255}


def test_every_orientation_is_turned_upright(hostile: Path) -> None:
    seen = read_image(hostile / "exif/upright_reference.png").astype(int)
    turned = [np.abs(other - seen).mean() for other in (seen[::-1], seen[:, ::-1], seen[::-1, ::-1])]
    for file in rows("exif"):
        error = np.abs(read_image(hostile / file) - seen).mean()
        assert error < 8 < min(turned), file


def make_root(hostile: Path, root: Path, *stems: str) -> Path:
    """Copy the pairs of some stems (all, if none are named) into root/train/{images,masks}."""
    for source, target in (("images", "images"), ("labels", "masks")):
        folder = root / "train" / target
        folder.mkdir(parents=True)
        for path in (hostile / "pairs" / source).iterdir():
            if not stems or path.stem in stems:
                shutil.copyfile(path, folder / path.name)
    return root


@pytest.mark.parametrize("file", rows("pairs"))
def test_pair_alone(hostile: Path, tmp_path: Path, file: str) -> None:
    outcome, reason = EXPECTED[file]
    stem = Path(file).stem
    root = make_root(hostile, tmp_path, stem)
    config = DataConfig(root=root, num_classes=12)
    if outcome != "refuse":
        image, label = FolderSource(config, "train").read(0)
        assert label.shape == image.shape[:2]
        assert label.dtype == np.uint8
        if outcome == "accept":
            assert " ".join(map(str, np.unique(label))) == reason
        return
    if stem == "mask_without_image":  # nothing is left to train on, and the check names the orphan
        faults = check_folder(config).faults
        assert any(fault.path.name == Path(file).name and reason in fault.line() for fault in faults)
        return
    with pytest.raises(DataError) as caught:
        FolderSource(config, "train").read(0)
    assert_one_line(str(caught.value), stem, reason)


def test_same_ids_in_every_coding(hostile: Path) -> None:
    labels = hostile / "pairs" / "labels"
    plain = load_mask(labels / "ok_gray.png").ids
    for name in ("ok_palette.png", "ids_16bit.png", "palette_4bit.png", "palette_transparent.png"):
        assert np.array_equal(load_mask(labels / name).ids, plain), name


def test_turned_pictures_fit_their_masks(hostile: Path, tmp_path: Path) -> None:
    """The masks of exif6 and exif3_square belong to the upright picture, which ok_gray shows unturned."""
    source = FolderSource(
        DataConfig(root=make_root(hostile, tmp_path, "exif6", "exif3_square", "ok_gray"), num_classes=12), "train"
    )
    samples = {name: source.read(index) for index, name in enumerate(source.names)}
    image, label = samples["exif6"]
    plain, plain_label = samples["ok_gray"]
    assert np.array_equal(label, plain_label)
    assert np.abs(image.astype(int) - plain).mean() < 6
    square, _ = samples["exif3_square"]
    assert (
        np.abs(square.astype(int) - plain[:, :96]).mean()
        < np.abs(square[::-1, ::-1].astype(int) - plain[:, :96]).mean()
    )


def test_check_finds_exactly_the_planted_faults(hostile: Path, tmp_path: Path) -> None:
    root = make_root(hostile, tmp_path)
    colours = "128,128,128 128,0,0 192,192,128 128,64,128 60,40,222 128,128,0 192,128,128 64,64,128 64,0,128"
    colours += " 64,64,0 0,128,192 0,0,0"
    table = [f"{index},c{index},{colour}" for index, colour in enumerate(colours.split())]
    (root / "classes.csv").write_text("id,name,r,g,b\n" + "\n".join(table) + "\n")
    report = check_folder(root)
    for severity, outcome in (("error", "refuse"), ("warning", "warn")):
        planted = {Path(file).stem for file in rows("pairs") if EXPECTED[file][0] == outcome}
        found = {fault.path.stem for fault in report.faults if fault.severity == severity and fault.path != root}
        assert found == planted
    for file in rows("pairs"):
        outcome, reason = EXPECTED[file]
        lines = [fault.line() for fault in report.faults if fault.path.stem == Path(file).stem]
        assert len(lines) == (0 if outcome == "accept" else 1), file
        if lines:
            assert_one_line(lines[0], Path(file).stem, reason)


@pytest.mark.parametrize("file", rows("lists"))
def test_split_list(hostile: Path, tmp_path: Path, file: str) -> None:
    outcome, reason = EXPECTED[file]
    for folder in ("images", "labels"):
        (tmp_path / "root" / folder).mkdir(parents=True)
        for stem in ("ok_palette", "ok_gray"):
            source = next((hostile / "pairs" / folder).glob(f"{stem}.*"))
            shutil.copyfile(source, tmp_path / "root" / folder / source.name)
    shutil.copyfile(hostile / file, tmp_path / "root" / "train.txt")
    if outcome == "accept":
        samples = samples_of(DataConfig(root=tmp_path / "root"), "train")
        assert [sample.name for sample in samples] == ["ok_palette", "ok_gray"]
        assert len(samples) == int(reason)
        return
    with pytest.raises(DataError) as caught:
        samples_of(DataConfig(root=tmp_path / "root"), "train")
    assert_one_line(str(caught.value), "train.txt", reason)
    if file == "lists/path_traversal.txt":
        wrong = [fault for fault in check_folder(tmp_path / "root", ["train"]).faults if fault.severity == "error"]
        assert [fault.what.split(" must")[0] for fault in wrong] == [f"line {number}" for number in range(2, 9)]


@pytest.mark.parametrize("file", rows("classes"))
def test_class_table(hostile: Path, file: str) -> None:
    outcome, reason = EXPECTED[file]
    if outcome == "refuse":
        with pytest.raises(DataError) as caught:
            read_class_table(hostile / file)
        assert_one_line(str(caught.value), Path(file).name, reason)
        return
    table = read_class_table(hostile / file)
    assert table.num_classes == int(reason)
    with pytest.raises(DataError, match=r"dup_colours.csv: colours must differ .* 'sky' and 'road'"):
        table.colour_ids()
