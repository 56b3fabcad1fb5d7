"""Folders that a test and another code base's interpreter exchange: pictures in, logits out, both in float64."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def folder_with_pictures(parent: Path, name: str, *sizes: tuple[int, int]) -> Path:
    """Make a folder whose pictures.npz holds two pictures [2, 3, h, w] of each size, named "hxw"."""
    folder = parent / name
    folder.mkdir()
    pictures = {f"{h}x{w}": torch.randn(2, 3, h, w, dtype=torch.float64).numpy() for h, w in sizes}
    np.savez(folder / "pictures.npz", **pictures)
    return folder


def run_peer(python: str, script: str, arguments: Iterable[object]) -> None:
    """Run a script of this folder, which writes logits.npz into every folder it is given."""
    command = [python, str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def arrays(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of an .npz."""
    with np.load(folder / name) as read:
        return {key: torch.from_numpy(read[key]) for key in read}


def assert_logits(found: Mapping[str, Tensor], folder: Path, tolerance: float) -> None:
    """Hold logits to the peer's: the largest difference within ``tolerance`` of the largest logit."""
    wanted = arrays(folder, "logits.npz")
    assert found.keys() == wanted.keys()
    for name, logits in wanted.items():
        assert found[name].shape == logits.shape, (folder.name, name)
        error = float((found[name] - logits).abs().max() / logits.abs().max())
        print(f"{folder.name} {name} {error:.2g}")  # shown by pytest -rP
        assert error <= tolerance, (folder.name, name, error)
