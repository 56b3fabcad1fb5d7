"""Pictures and masks as arrays. One rule for every command that reads a file.

Pictures become 8-bit RGB, upright:
  the format is told by the content, never by the suffix; EXIF orientation is applied (invalid or unreadable: upright);
  16 bits per channel keep their high byte; grey is spread to three channels; palettes are looked up;
  alpha is dropped, the stored colour stays; CMYK is converted; of an animation the first frame counts;
  floating-point and 32-bit pictures are refused, because nothing says what 1.0 or 70000 means.
Masks become class ids as stored: palette masks give indices, never colours.
A file that is cut is refused, also where only its last bytes are missing, and so is one whose damage shows (every
byte of a PNG has a checksum; a JPEG has none). Bytes after the end of a picture are ignored.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from setr_fast.data.faults import Fault, FaultError, one_line
from setr_fast.data.formats.signatures import (
    HEAD_BYTES,
    MAX_PIXELS,
    PngHeader,
    Unusable,
    exif_orientation,
    read_png_header,
    sniff,
    webp_size,
)

_INDEX_MODES = {"P", "L", "1", "I", "I;16", "I;16L", "I;16B"}
_CONVERTED = {"PA": "RGBA", "RGBa": "RGBA", "La": "LA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}
"""Modes that Pillow converts, to modes whose arrays hold RGB or grey."""
_ORIENTATION = 0x0112
_WARNINGS_LOCK = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What is known of a file before its pixels are decoded. Height and width are upright."""

    format: str
    mode: str
    height: int
    width: int
    orientation: int


@dataclass(frozen=True)
class Mask:
    """Ids of a mask as stored, [H, W] uint8, uint16 or int32, and the colours of its palette, if it has one."""

    ids: np.ndarray
    palette: np.ndarray | None


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> np.ndarray:
    """Return a picture as uint8 RGB [H, W, 3], upright. ``data``: its bytes, where ``path`` only says whose they are.

    Raises: FaultError naming the file, what is wrong with it and what to do.
    """
    with _opened(Path(path), max_pixels, checksums=True, data=data) as (image, header, _):
        return to_rgb(image, header.orientation)


def read_channels(
    path: Path | str, channels: int, max_pixels: int = MAX_PIXELS, data: bytes | None = None
) -> np.ndarray:
    """Return a picture of 1, 3 or 4 channels as they are stored, uint8 [H, W, channels], upright.

    Four are RGB and what the file calls alpha, which here is one more measurement.

    Raises: FaultError as ``read_image``; also for another number of channels.
    """
    with _opened(Path(path), max_pixels, checksums=True, data=data) as (image, header, _):
        image.load()
        found = len(image.getbands())
        if found != channels or image.mode in ("P", "CMYK"):
            raise Unusable(
                f"picture must have {channels} channels, got mode {image.mode}",
                "give the further channels in a folder of their own (--data.extra), or store [H, W, C] as .npy",
            )
        if image.mode == "RGBA":
            return _upright(np.array(image), header.orientation)
        return to_rgb(image, header.orientation)[..., :channels]


def to_rgb(image: Image.Image, orientation: int | None = None) -> np.ndarray:
    """Return any Pillow image as uint8 RGB [H, W, 3], upright, by the rules for pictures above.

    ``orientation``: 1..8 as EXIF counts; none: what the image itself says.

    Raises: Unusable for values of more than 16 bits, and modes that are no picture.
    """
    image.load()  # before its EXIF is asked: Pillow turns TIFF while loading, and finds some blocks only then
    return _upright(_rgb(image), _orientation(image) if orientation is None else orientation)


def load_mask(path: Path | str, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> Mask:
    """Return a mask's ids as stored, together with its palette. ``data``: as for ``read_image``.

    Raises: FaultError; also for masks that hold colours, have alpha, or come in a lossy format.
    """
    with _opened(Path(path), max_pixels, checksums=True, data=data) as (image, header, png):
        _check_mask(image, header)
        if image.mode not in _INDEX_MODES:
            raise _not_ids(image.mode)
        ids = np.array(image)
        if ids.dtype.kind == "u" and ids.dtype.itemsize == 2:
            ids = ids.astype(np.uint16)
        elif image.mode != "I":
            ids = ids.astype(np.uint8)  # 1-bit masks: False and True are the ids 0 and 1
        if image.mode == "L" and png is not None and png.bit_depth < 8:
            ids //= np.uint8(255 // (2**png.bit_depth - 1))  # Pillow spreads 2- and 4-bit grey over 0..255
        palette = _palette(image) if image.mode == "P" else None
        return Mask(ids, palette)


def load_colours(path: Path | str, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> np.ndarray:
    """Return a colour mask as uint8 RGB [H, W, 3]; the same formats as masks of ids, so never a lossy one."""
    with _opened(Path(path), max_pixels, checksums=True, data=data) as (image, header, _):
        _check_mask(image, header)
        if image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema() != (255, 255):
            raise Unusable(
                "colour mask must be opaque, got transparent pixels", "export it without alpha, with a colour for void"
            )
        return to_rgb(image, header.orientation)


def image_header(path: Path | str, max_pixels: int = MAX_PIXELS) -> Header:
    """Read what a file says before its pixels: format, mode, upright size, orientation."""
    with _opened(Path(path), max_pixels, checksums=False) as (_, header, _png):
        return header


def mask_header(path: Path | str, max_pixels: int = MAX_PIXELS, colours: bool = False) -> Header:
    """Read a mask's header and refuse what no mask can be: lossy formats and, unless ``colours``, colours."""
    with _opened(Path(path), max_pixels, checksums=False) as (image, header, _):
        _check_mask(image, header)
        if not colours and image.mode not in _INDEX_MODES:
            raise _not_ids(image.mode)
        return header


def _not_ids(mode: str) -> Unusable:
    if mode in ("LA", "PA"):
        return Unusable("mask must hold one channel of class ids, got ids with alpha", "export it without alpha")
    if mode == "F":
        return Unusable("mask must hold whole class ids, got floating-point values", "save it as 8- or 16-bit PNG")
    return Unusable(
        f"mask must hold class ids, got colours ({mode})",
        "convert the colours to ids, or set --data.mask-colours rgb with a class table",
    )


def _check_mask(image: ImageFile.ImageFile, header: Header) -> None:
    if header.format in ("JPEG", "WEBP") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        raise Unusable(
            f"mask must be stored without loss, got {header.format}",
            "export the mask again, as PNG: its ids are blurred",
        )
    if header.orientation != 1:
        raise Unusable(
            f"mask must be stored upright, got EXIF orientation {header.orientation}",
            "save it upright, without EXIF; pictures are turned, masks never are",
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if inverted or (image.mode == "L" and bits != (8,)):
            raise Unusable("mask TIFF must hold plain 8- or 16-bit ids, got another coding", "save it as PNG")


class _PictureFile(io.BufferedReader):
    """A file whose end is an error once pixels are read.

    Pillow pads a cut picture with grey when any code of the process has set LOAD_TRUNCATED_IMAGES.
    """

    strict = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.strict and not data and size != 0:
            raise Unusable(f"must be complete, got the end of the file after {self.tell()} bytes")
        return data


class _Held(io.RawIOBase):
    """Bytes that are in memory, as a file that can be read."""

    def __init__(self, data: bytes) -> None:
        self._bytes = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._bytes.readinto(buffer)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._bytes.seek(offset, whence)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG whose EXIF Pillow leaves alone: it would warn about damaged blocks while looking for a resolution."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": _Jpeg,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}


@contextmanager
def _opened(
    path: Path, max_pixels: int, checksums: bool, data: bytes | None = None
) -> Iterator[tuple[ImageFile.ImageFile, Header, PngHeader | None]]:
    """Open a picture, check what its header declares, and turn whatever goes wrong into a FaultError."""

    def accept(width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise Unusable(f"must have at least one pixel, got {width} x {height}")
        if width * height > max_pixels:
            raise Unusable(
                f"must have at most {max_pixels} pixels (max_pixels), got {width} x {height} = {width * height}",
                "cut the picture into tiles, or raise --data.max-pixels (predict: --max-pixels) if the file is trusted",
            )

    def refused(what: str, remedy: str) -> FaultError:
        return FaultError(Fault(path, what, remedy))

    try:
        if data is None and not stat.S_ISREG(path.stat().st_mode):
            raise Unusable(
                "must be a file, got " + ("a folder" if path.is_dir() else "a device or a pipe"), "name a file"
            )
        with _PictureFile(io.FileIO(path) if data is None else _Held(data)) as file:
            head = file.read(HEAD_BYTES)
            kind = sniff(head)
            png = read_png_header(file, checksums, accept) if kind == "PNG" else None
            if kind == "WEBP":
                accept(*webp_size(head))  # Pillow's reader allocates the canvas on opening
            file.seek(0)
            # Straight to the reader: Image.open would add Pillow's own size limit, a process-wide setting.
            talkative = kind == "TIFF" or (png is not None and png.animated)
            with _quiet() if talkative else nullcontext(), _READERS[kind](file) as image:
                accept(*image.size)
                if kind == "TIFF":  # Pillow turns these itself
                    orientation = 1
                else:
                    orientation = exif_orientation(png.exif if png is not None else image.info.get("exif", b""))
                width, height = image.size if orientation < 5 else image.size[::-1]
                file.strict = True
                yield image, Header(kind, image.mode, height, width, orientation), png
    except FaultError:
        raise
    except Unusable as error:
        raise refused(error.what, error.remedy) from None
    except FileNotFoundError:
        what = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise refused(f"must exist, got {what}", "check the name, or fetch the data") from None
    except PermissionError:
        raise refused("must be readable, got 'permission denied'", "change its permissions") from None
    except MemoryError:
        raise refused("must fit into memory, got too large a picture", "cut it into tiles") from None
    except Exception as error:  # readers of foreign bytes raise nearly anything
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise refused("must exist, got links that lead in a circle", "set the link anew") from None
        if isinstance(error, OSError) and error.errno:
            raise refused(
                f"must be readable, got '{os.strerror(error.errno)}'", "see to the disk or the path"
            ) from None
        reason = one_line(str(error)) or type(error).__name__
        raise refused(
            f"must be a complete, undamaged picture, got '{reason}'", "copy or download the file again"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings from the user. Their filters are process-wide, hence the lock, and only where needed."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: Image.Image) -> int:
    stored = image.info.get("exif")
    if isinstance(stored, bytes):
        return exif_orientation(stored)
    try:
        value = image.getexif().get(_ORIENTATION)  # set by whoever made the image
    except Exception:  # damaged blocks of other kinds raise nearly anything
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> np.ndarray:
    """Return the stored pixels as uint8 [H, W, 3], not yet turned."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise Unusable(
            f"must have 8 or 16 bits per channel, got {kind} values", "scale it to 0..255 and save it as PNG"
        )
    if image.mode == "P":
        return _palette(image)[np.asarray(image)]
    if image.mode in _CONVERTED:
        image = image.convert(_CONVERTED[image.mode])
    mode, pixels = image.mode, np.array(image)
    if mode == "1":
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif mode.startswith("I"):
        pixels = (pixels >> 8).astype(np.uint8)
    elif mode in ("LA", "RGBA", "RGBX"):
        pixels = pixels[..., : 1 if mode == "LA" else 3]
    elif mode not in ("L", "RGB"):
        raise Unusable(f"must be grey, RGB, CMYK or palette, got mode {mode}", "save it as 8-bit RGB PNG")
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return pixels


def _palette(image: Image.Image) -> np.ndarray:
    """Return the palette as uint8 [256, 3]; entries that the file leaves out are black."""
    image.load()  # Pillow completes the palette only then
    colours = np.zeros((256, 3), np.uint8)
    entries = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    colours[: len(entries)] = entries
    return colours


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels [H, W, ...] as EXIF orientation 1..8 says.

    Source: CIPA DC-008 (EXIF 2.32), Orientation: which edges of the scene row 0 and column 0 are.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
