"""Many pictures from files to files: the pipeline against the engine alone on the same pictures, already decoded.

What reading, decoding, laying colours over and writing cost beside the engine is the share of its rate that is left: on
two cores all of it is time that the engine lacks. Both sides must give the same class maps: those that the pipeline
wrote while the clock ran are read back when it has stopped.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.job_contest import compare_jobs
from benchmarks.networks import CLASSES, network
from benchmarks.rows import Parity
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predict_command import predict_files
from setr_fast.engine.predictor import predict

SIZE = 512
SECONDS = 10.0
PIPELINE, ENGINE = "pipeline", "engine"
Maps = Sequence[np.ndarray | Path]
"""Class maps of a run, or the files that it wrote them to."""


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("setr_pup_vit_t16", 6, id="pup_t16"),
        pytest.param("setr_pup_vit_t16", 200, id="pup_t16_200", marks=pytest.mark.full),
        pytest.param("setr_pup_vit_b16", 40, id="pup_b16_40", marks=pytest.mark.full),
    ],
)
def test_a_folder_of_photographs(
    name: str, count: int, benchmark: Any, record: Callable[[Any], None], seed: int, tmp_path: Path
) -> None:
    model = network(name, SIZE, seed).cpu().eval()
    files = _photographs(tmp_path / "in", count, seed)
    decoded = [np.array(Image.open(file)) for file in files]
    config, number = InferenceConfig(), itertools.count()

    def engine() -> Maps:
        return [predict(model, picture, config) for picture in decoded]

    def pipeline() -> list[Path]:
        out = tmp_path / f"out{next(number)}"
        out.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            predict_files(model, files, out, config)
        return [out / f"{file.stem}.png" for file in files]

    compare_jobs(
        {PIPELINE: pipeline, ENGINE: engine},
        _verdict,
        ENGINE,
        PIPELINE,
        benchmark,
        record,
        seconds=SECONDS,
        name="folder of pictures",
        case=f"{name}, {CLASSES} classes, {count} of {SIZE}x{SIZE}, overlays as by default",
        size=[count, SIZE, SIZE],
        pictures=count,
    )


def _photographs(folder: Path, count: int, seed: int) -> list[Path]:
    """Write pictures that pack about as well as photographs do: smooth colours under some noise."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    files = []
    for index in range(count):
        coarse = 255 * torch.rand(1, 3, 24, 24, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic")[0]
        noisy = smooth + 6 * torch.randn(smooth.shape, generator=generator)
        files.append(folder / f"{index:03d}.jpg")
        pixels = noisy.clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(files[-1], quality=90)
    return files


def _verdict(found: list[Maps], want: Maps) -> Parity:
    """Compare every class map that was written while the clock ran with the engine's first."""
    other = sum(
        not np.array_equal(_class_map(got), _class_map(right))
        for maps in found
        for got, right in zip(maps, want, strict=True)
    )
    why = f"{other} class maps differ" if other else ""
    return Parity(not other, float(other), 0.0, sum(map(len, found)), why)


def _class_map(made: np.ndarray | Path) -> np.ndarray:
    return np.array(Image.open(made)) if isinstance(made, Path) else made
