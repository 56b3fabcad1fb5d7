"""A small clean data folder, which tests then spoil."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TABLE = "id,name,r,g,b,ignore\n0,sky,10,20,30,0\n1,road,40,50,60,0\n2,car,70,80,90,0\n3,void,0,0,0,1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clean data folder: two splits of four pairs that use every class."""
    (tmp_path / "classes.csv").write_text(TABLE)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (tmp_path / split / folder).mkdir(parents=True)
        for stem in "abcd":
            ids = rng.integers(0, 4, (12, 20), dtype=np.uint8)
            image = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{stem}.jpg")
            Image.fromarray(ids).save(tmp_path / split / "masks" / f"{stem}.png")
    return tmp_path
