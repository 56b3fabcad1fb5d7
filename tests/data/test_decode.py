"""Reading pictures and masks: one rule per colour mode, and no damaged file gets through."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.formats.decode import image_header, load_mask, read_image, to_rgb
from setr_fast.data.formats.signatures import Unusable, exif_orientation
from setr_fast.errors import DataError
from tests.data.handmade import chunk, exif, picture, png


def image_size(path: Path) -> tuple[int, int]:
    header = image_header(path)
    return header.height, header.width


def refused(path: Path, *words: str) -> str:
    with pytest.raises(DataError) as caught:
        read_image(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (path.name, *words):
        assert word in message
    return message


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "webp", "jpg"])
def test_format_is_told_by_content_not_by_suffix(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(picture()).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    os.rename(tmp_path / f"a.{suffix}", tmp_path / "a.dat")
    pixels = read_image(tmp_path / "a.dat")
    assert pixels.shape == (9, 14, 3)
    assert pixels.dtype == np.uint8
    assert image_size(tmp_path / "a.dat") == (9, 14)
    if suffix not in ("jpg", "gif"):
        assert np.array_equal(pixels, picture())


def test_alpha_is_dropped_and_the_stored_colour_kept(tmp_path: Path) -> None:
    pixels = np.dstack([picture(), np.zeros((9, 14), np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), picture())
    Image.fromarray(pixels[..., ::3].copy(), "LA").save(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "b.png"), np.repeat(picture()[..., :1], 3, axis=2))


def test_sixteen_bits_keep_the_high_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 0x1234, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 1].tolist() == [0, 0, 1, 0x12, 255]
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 2].tolist() == [0, 0, 1, 0x12, 255]
    (tmp_path / "rgb.png").write_bytes(png(1, 1, 16, 2, [bytes([1, 2, 3, 4, 255, 255])]))
    assert read_image(tmp_path / "rgb.png").tolist() == [[[1, 3, 255]]]


def test_bilevel_becomes_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[255] * 3, [0] * 3]]


def test_transparent_palette_gives_colours_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
        assert load_mask(tmp_path / "a.png").ids.tolist() == [[0, 1]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_orientation_is_undone(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # upper left corner white
    upright[8:, 24:, 0] = 255  # lower right corner red
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright[::-1], -1),
        8: np.rot90(upright, -1),
    }[orientation]
    if orientation == 7:  # mirrored across the other diagonal
        stored = upright[::-1, ::-1].swapaxes(0, 1)
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}, "png": {}}[suffix]
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{suffix}", exif=exif(orientation), **options)
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).max() < 30
    assert read.flags.c_contiguous
    assert image_size(tmp_path / f"a.{suffix}") == (16, 32)


def test_orientation_agrees_with_pillow_on_tiff(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.tif", tiffinfo={274: 6})
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.rot90(picture(), -1))
    assert image_size(tmp_path / "a.tif") == (14, 9)


@pytest.mark.parametrize(
    ("block", "orientation"),
    [
        (exif(6), 6),
        (exif(8, ">"), 8),
        (exif(6)[6:], 6),
        (exif(0), 1),
        (exif(9), 1),
        (exif(6)[:20], 1),
        (b"Exif\0\0II*\0\xff\xff\xff\x7f", 1),
        (b"Exif\0\0", 1),
        (b"", 1),
        (b"Exif\0\0XX*\0", 1),
    ],
)
def test_damaged_exif_means_upright(block: bytes, orientation: int) -> None:
    assert exif_orientation(block) == orientation


def test_damaged_exif_raises_no_warning(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.jpg").shape == (9, 14, 3)


def test_odd_metadata_raises_no_warning(tmp_path: Path) -> None:
    rows = [bytes([index] * 4) for index in range(3)]
    (tmp_path / "a.png").write_bytes(png(4, 3, 8, 0, rows, chunk(b"acTL", bytes(8))))  # an animation of no frames
    Image.fromarray(picture()).save(tmp_path / "a.tif")
    whole = (tmp_path / "a.tif").read_bytes()
    (directory,) = struct.unpack_from("<I", whole, 4)
    (entries,) = struct.unpack_from("<H", whole, directory)
    end = directory + 2 + 12 * entries
    (tmp_path / "b.tif").write_bytes(whole[:end] + struct.pack("<I", 0xFFFFFFF0) + whole[end + 4 :])
    (tmp_path / "c.tif").write_bytes(
        whole[: end - 12] + struct.pack("<HHII", 0x9C9B, 2, 1 << 20, 8) + whole[end:]
    )  # a tag longer than the file
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png")[2, 0].tolist() == [2, 2, 2]
        for name in ("b.tif", "c.tif"):
            assert read_image(tmp_path / name).shape == (9, 14, 3)


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_a_cut_file_is_refused_wherever_it_is_cut(
    tmp_path: Path, suffix: str, tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when other code of the process has told Pillow to fill cut pictures with grey."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    Image.fromarray(picture(40, 60)).save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    for length in [*range(1, 40, 3), len(whole) // 2, len(whole) - 30, len(whole) - 2, len(whole) - 1]:
        (tmp_path / f"b.{suffix}").write_bytes(whole[:length])
        refused(tmp_path / f"b.{suffix}")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


def test_bytes_after_the_end_are_ignored(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        Image.fromarray(picture()).save(tmp_path / f"a.{suffix}")
        whole = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"b.{suffix}").write_bytes(whole + b"\xff\xd8 garbage \0" * 50)
        assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), read_image(tmp_path / f"b.{suffix}"))


def test_every_flipped_bit_of_a_png_is_found(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        (tmp_path / "b.png").write_bytes(damaged)
        refused(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"just words\n", "plain text"),
        ("Stra\u00dfe \u8857".encode() * 60, "plain text"),
        (b" \n<!DOCTYPE html><p>404", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "git lfs pull"),
        (bytes(range(256)), "no known picture format"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04", "ZIP"),
        (b"\xff\xd8\xff\xe0", "undamaged"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    refused(tmp_path / "a.jpg", words)


def test_missing_files_folders_links_and_pipes_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "no such file")
    refused(tmp_path, "a folder")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path / "link.png", "a link to a file that is not there")
    (tmp_path / "circle.png").symlink_to("circle.png")
    refused(tmp_path / "circle.png", "links that lead in a circle")
    refused(tmp_path / ("n" * 300), "must be readable, got 'File name too long'")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "a pipe")


def test_declared_size_is_limited_before_decoding(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 1 << 20, 1 << 20, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"\x7f\xff\xff\xffIDAT")
    assert "1048576 x 1048576" in refused(tmp_path / "a.png", "max_pixels", "--data.max-pixels")
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tif"):
        Image.fromarray(picture()).save(tmp_path / f"b.{suffix}")
        assert read_image(tmp_path / f"b.{suffix}", max_pixels=126).shape == (9, 14, 3)
        for read in (read_image, image_header, load_mask):
            with pytest.raises(DataError, match="at most 125 pixels"):
                read(tmp_path / f"b.{suffix}", max_pixels=125)


def test_pillows_own_size_limit_plays_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (9, 14, 3)


def test_floats_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", "floating-point")
    Image.fromarray(np.ones((3, 3), np.int32)).save(tmp_path / "b.tif")
    refused(tmp_path / "b.tif", "32-bit")


# ---- Pillow images --------------------------------------------------------------------------------------------------

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]


def in_mode(mode: str) -> Image.Image:
    grey = picture()[..., 0].astype(np.uint16) * 251
    return Image.fromarray(grey) if mode == "I;16" else Image.fromarray(picture()).convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_becomes_what_its_file_does(tmp_path: Path, mode: str) -> None:
    image = in_mode(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    pixels = to_rgb(image)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    if mode != "YCbCr":  # stored with another rounding
        assert np.array_equal(pixels, read_image(path))
    with Image.open(path) as opened:
        assert np.array_equal(to_rgb(opened), read_image(path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_pillow_image_is_turned_once(tmp_path: Path, suffix: str) -> None:
    options = {"tiffinfo": {274: 6}} if suffix == "tif" else {"exif": exif(6)}
    Image.fromarray(picture()).save(tmp_path / f"a.{suffix}", **options)
    wanted = read_image(tmp_path / f"a.{suffix}")
    assert wanted.shape == (14, 9, 3)
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        for image in (opened, opened.copy(), ImageOps.exif_transpose(opened)):
            assert np.array_equal(to_rgb(image), wanted)


def test_orientation_set_in_memory_counts_and_damaged_exif_means_upright() -> None:
    image = Image.fromarray(picture())
    image.getexif()[0x0112] = 6
    assert np.array_equal(to_rgb(image), np.rot90(picture(), -1))
    for block in (exif(6)[:20], exif(9), b"Exif\0\0XX*\0"):
        damaged = Image.fromarray(picture())
        damaged.info["exif"] = block
        assert np.array_equal(to_rgb(damaged), picture())


@pytest.mark.parametrize(("mode", "words"), [("F", "floating-point"), ("I", "32-bit")])
def test_pillow_images_without_a_known_range_are_refused(mode: str, words: str) -> None:
    with pytest.raises(Unusable, match=words):
        to_rgb(Image.new(mode, (2, 2)))


def test_header_says_mode_and_upright_size(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif(6))
    header = image_header(tmp_path / "a.jpg")
    assert (header.format, header.mode, header.height, header.width, header.orientation) == ("JPEG", "RGB", 14, 9, 6)


def test_threads_read_the_same_as_one(tmp_path: Path) -> None:
    for index in range(8):
        suffix = ("png", "jpg", "tif", "webp")[index % 4]
        Image.fromarray(np.roll(picture(64, 64), index, axis=0)).save(tmp_path / f"{index}.{suffix}")
    paths = sorted(tmp_path.iterdir()) * 8
    alone = [read_image(path) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(read_image, paths))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_faults_survive_the_way_out_of_a_process(tmp_path: Path) -> None:
    error = FaultError(Fault(tmp_path / "a\nb.png", "must be good,\tgot bad", "mend it"), more=2)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.fault == error.fault
    assert "\n" not in str(error)
    assert "\t" not in str(error)
    assert "2 more faults" in str(error)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    stream = io.BytesIO((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "b.png").write_bytes(stream.getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for _ in range(5):
            read_image(tmp_path / "a.png")
            refused(tmp_path / "b.png")
        after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before
