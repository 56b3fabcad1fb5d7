"""Reading masks: ids as stored, or a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.formats.decode import load_mask, mask_header
from setr_fast.errors import DataError
from tests.data.handmade import chunk, exif, png


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("colour", [0, 3])
def test_packed_masks_give_ids_as_stored(tmp_path: Path, depth: int, colour: int) -> None:
    """Pillow spreads 2- and 4-bit grey over 0..255; ids must not be."""
    ids = [index % 2**depth for index in range(16)]
    bits = "".join(f"{value:0{depth}b}" for value in ids)
    row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    palette = chunk(b"PLTE", bytes(range(3 * 2 ** min(depth, 5)))) if colour == 3 else b""
    (tmp_path / "a.png").write_bytes(png(16, 1, depth, colour, [row], palette))
    read = load_mask(tmp_path / "a.png").ids
    assert read.dtype == np.uint8
    assert read.tolist() == [ids]
    assert (load_mask(tmp_path / "a.png").palette is not None) == (colour == 3)


def test_wide_ids_are_neither_scaled_nor_wrapped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 11, 255, 256, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert load_mask(tmp_path / "a.png").ids.dtype == np.uint16
    assert load_mask(tmp_path / "a.png").ids.tolist() == [[0, 11, 255, 256, 65535]]
    Image.fromarray(np.array([[0, 70000, -1]], np.int32)).save(tmp_path / "a.tif")
    assert load_mask(tmp_path / "a.tif").ids.tolist() == [[0, 70000, -1]]


@pytest.mark.parametrize(
    ("mode", "suffix", "words"),
    [
        ("RGB", "png", "--data.mask-colours rgb"),
        ("RGBA", "png", "--data.mask-colours rgb"),
        ("LA", "png", "alpha"),
        ("L", "jpg", "without loss"),
        ("RGB", "webp", "without loss"),
        ("F", "tif", "floating-point"),
    ],
)
def test_masks_that_hold_no_ids_are_refused(tmp_path: Path, mode: str, suffix: str, words: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (4, 3)).save(path)
    for read in (load_mask, mask_header):
        with pytest.raises(DataError, match=words) as caught:
            read(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_lossy_tiff_is_refused_as_a_mask(tmp_path: Path) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(DataError, match="without loss"):
        load_mask(tmp_path / "a.tif")


def test_masks_that_say_they_lie_on_their_side_are_refused(tmp_path: Path) -> None:
    """Turning them or not would both be a guess: many tools that draw masks do not look at EXIF."""
    Image.new("L", (4, 3)).save(tmp_path / "a.png", exif=exif(6))
    with pytest.raises(DataError, match="EXIF orientation 6"):
        load_mask(tmp_path / "a.png")
    Image.new("L", (4, 3)).save(tmp_path / "a.png", exif=exif(1))
    assert load_mask(tmp_path / "a.png").ids.shape == (3, 4)


def test_lossless_formats_besides_png_hold_masks(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for suffix in ("bmp", "tif"):
        Image.fromarray(ids).save(tmp_path / f"a.{suffix}")
        assert np.array_equal(load_mask(tmp_path / f"a.{suffix}").ids, ids)
    Image.fromarray(ids).save(tmp_path / "b.tif", compression="tiff_lzw")
    assert np.array_equal(load_mask(tmp_path / "b.tif").ids, ids)
