"""Where a verb is to write: one rule for its exit code, whatever the verb.

A name of the wrong kind (a file for a folder, a folder for a file, a folder of other files) is the user's: 2. A place
where the system lets nothing be written is the environment's: 4.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.cli import main
from setr_fast.errors import ConfigError
from setr_fast.files import atomic_folder
from setr_fast.models.model import create_model

VERBS = ["train", "eval", "compare", "predict", "convert", "convert --to mmseg", "export", "coco", "shards"]
FILES = {"eval", "compare", "convert --to mmseg", "export"}  # the others write folders


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a verb reads: a model, a picture, two results, a data set, annotations."""
    root = tmp_path_factory.mktemp("given")
    create_model("setr_naive_vit_t16", 3, 32, width=32, depth=4, num_heads=2, head_channels=8).save(root / "model")
    pixels = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 3
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / "data" / split / kind).mkdir(parents=True)
        Image.fromarray(np.dstack([pixels] * 3)).save(root / "data" / split / "images" / "a.jpg")
        Image.fromarray(pixels).save(root / "data" / split / "masks" / "a.png")
    (root / "data" / "classes.csv").write_text("id,name,r,g,b\n0,a,0,0,0\n1,b,1,1,1\n2,c,2,2,2\n")
    Image.fromarray(np.dstack([pixels] * 3)).save(root / "a.png")
    (root / "a.json").write_text(json.dumps({"mIoU": 0.5, "aAcc": 0.5, "mAcc": 0.5, "IoU": {"a": 0.5}}))
    drawn = {"images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}]}
    drawn |= {"categories": [{"id": 1, "name": "a"}], "annotations": []}
    (root / "coco.json").write_text(json.dumps(drawn))
    return root


def _asked(verb: str, given: Path, place: Path) -> list[str]:
    model, data = ["--checkpoint", str(given / "model")], ["--data.root", str(given / "data")]
    return {
        "train": ["train", "--run-dir", str(place), *data],
        "eval": ["eval", *model, *data, "--out", str(place)],
        "compare": ["compare", str(given / "a.json"), str(given / "a.json"), "--bootstrap", "0", "--out", str(place)],
        "predict": ["predict", *model, str(given / "a.png"), "--out", str(place)],
        "convert": ["convert", str(given / "model"), str(place)],
        "convert --to mmseg": ["convert", str(given / "model"), str(place), "--to", "mmseg"],
        "export": ["export", *model, "--out", str(place), "--format", "torch_export"],
        "coco": ["data", "coco", str(given / "coco.json"), str(place)],
        "shards": ["data", "shards", str(given / "data"), str(place)],
    }[verb]


def _refused(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == code, capsys.readouterr().err
    told = capsys.readouterr().err
    assert told.count("\n") == 1, "one line"
    assert "must" in told or "cannot be written" in told


@pytest.mark.parametrize("verb", VERBS)
def test_where_the_system_lets_nothing_be_written_is_the_environments(
    verb: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may write anywhere, but not below a file."""
    (tmp_path / "file").write_text("kept")
    _refused(_asked(verb, given, tmp_path / "file" / "out.pt2"), 4, capsys)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("verb", VERBS)
def test_a_name_of_the_wrong_kind_is_the_users(
    verb: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "out.pt2"
    if verb in FILES:
        place.mkdir()
    else:
        place.write_text("kept")
    _refused(_asked(verb, given, place), 2, capsys)
    assert place.is_dir() or place.read_text() == "kept"


@pytest.mark.parametrize("verb", VERBS)
def test_a_device_or_a_pipe_keeps_its_name(
    verb: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is put in the place of what was there, so that root would lose /dev/null."""
    place = tmp_path / "out.pt2"
    os.mkfifo(place)
    _refused(_asked(verb, given, place), 2, capsys)
    assert place.is_fifo()


def test_channels_that_a_model_does_not_take_are_refused(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*_asked("predict", given, tmp_path / "out"), "--extra", str(given)]
    _refused(argv, 2, capsys)


def test_a_folder_is_not_put_in_a_pipes_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="got a device or a pipe"), atomic_folder(tmp_path / "pipe"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]
