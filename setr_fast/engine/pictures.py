"""What callers hand in as a picture, as one kind of tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from setr_fast.data.decode import read_image, to_rgb
from setr_fast.data.formats import Unusable
from setr_fast.errors import ShapeError

Picture = str | Path | Image.Image | npt.NDArray[np.uint8]


def as_pixels(image: Picture) -> Tensor:
    """Return a picture as a contiguous uint8 tensor [H, W, 3], RGB, upright.

    A Pillow image becomes what ``read_image`` makes of its file: turned by its EXIF orientation, alpha dropped,
    16 bits to their high byte.

    Raises: ShapeError for an array that is not uint8 [H, W, 3] or is empty, and for a Pillow image of floats or of
        32 bits; DataError for a file that cannot be read.
    """
    if isinstance(image, (str, Path)):
        array: Any = read_image(Path(image))
    elif isinstance(image, Image.Image):
        try:
            array = to_rgb(image)
        except Unusable as error:
            raise ShapeError(f"predict: image {error.what}; {error.remedy}") from None
    else:
        array = image
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        got = f"{array.dtype} {list(array.shape)}" if hasattr(array, "shape") else type(array).__name__
        raise ShapeError(
            f"predict: image must be a path, a Pillow image or a uint8 RGB array [H, W, 3], got {got}; "
            "scale floats to 0..255 and convert, repeat grey three times"
        )
    if 0 in array.shape:
        raise ShapeError(f"predict: image must have at least one pixel, got {list(array.shape)}; leave it out")
    # The ops take contiguous memory, and torch warns about arrays that are read-only.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
