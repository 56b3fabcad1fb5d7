"""Names of results, and what the written PNGs hold."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from setr_fast.data.palette import default_palette
from setr_fast.engine.outputs import ENDINGS, output_stems
from setr_fast.engine.overlay import index_png, legend, overlay, overlay_file
from setr_fast.errors import ShapeError

LETTERS = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
NAMES = st.text(LETTERS, min_size=1, max_size=80).filter(lambda name: name not in (".", ".."))


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), NAMES), max_size=8))
def test_results_are_always_inside_and_never_share_a_name(tmp_path_factory, inputs):
    folder = tmp_path_factory.getbasetemp()
    files = [folder / "in" / parent / (name + ".jpg") for parent, name in inputs]
    stems = output_stems(files, folder / "out")
    names = [stem + ending for stem in stems for ending in ENDINGS]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert os.path.basename(name) == name
        assert name not in (".", "..")
        assert len(os.fsencode(name)) <= 255


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.jpg", "a.png", "A.jpg"], ["a", "a_png", "A_jpg"]),
        (["x/a.jpg", "y/a.jpg", "z/a.jpg"], ["a", "a_jpg", "a_2"]),
        (["a.jpg", "a_overlay.jpg"], ["a", "a_overlay_jpg"]),
        (["a_overlay.jpg", "a.jpg"], ["a_overlay", "a_jpg"]),
        (["many.dots.v1.jpg"], ["many.dots.v1"]),
        (["....jpg", "..%2F..%2Fescape.jpg", ".hidden.jpg", "-rf.jpg"], ["...", "..%2F..%2Fescape", ".hidden", "-rf"]),
        (["u\u0308.jpg", "\u00fc.jpg"], ["u\u0308", "\u00fc_jpg"]),
    ],
)
def test_stems_are_kept_where_they_can_be(tmp_path, names, stems):
    assert output_stems([tmp_path / "in" / name for name in names], tmp_path / "out") == stems


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["a.jpg", "x/a.jpg", "x/y/a.jpg"], ["a", "x/a", "x/y/a"]),
        (["x/a.jpg", "X/a.jpg"], ["x/a", "x/a_jpg"]),
        (["X/a.jpg", "x/a.png/b.jpg"], ["X/a_jpg", "X/a.png/b"]),
        (["a.mp4", "a_frames/b.jpg"], ["a_mp4", "a_frames/b"]),
        (["x/a.jpg", "x/a.png/b.jpg", "a.png/y/b.jpg", "a.jpg"], ["x/a_jpg", "x/a.png/b", "a.png/y/b", "a_jpg"]),
    ],
)
def test_folders_are_kept_and_no_result_has_the_name_of_one(tmp_path, names, stems):
    files = [tmp_path / "in" / name for name in names]
    below = [file.parent.relative_to(tmp_path / "in") for file in files]
    assert output_stems(files, tmp_path / "out", below) == stems


def test_long_stems_are_cut_between_letters_and_stay_apart(tmp_path):
    files = [tmp_path / ("\u00fc" * 123 + end + ".jpg") for end in "ab"]
    one, two = output_stems(files, tmp_path / "out")
    assert one != two
    assert all(
        len(os.fsencode(stem + "_overlay.png")) <= 255 and stem.startswith("\u00fc" * 100) for stem in (one, two)
    )
    assert output_stems([tmp_path / ("n" * 200 + ".jpg")], tmp_path / "out") == ["n" * 200]


def test_an_input_in_the_output_folder_is_never_overwritten(tmp_path):
    (tmp_path / "a.png").touch()
    assert output_stems([tmp_path / "a.png"], tmp_path) == ["a_png"]
    assert output_stems([tmp_path / "b.png", tmp_path / "b_png.png"], tmp_path) == ["b_2", "b_png_png"]


def test_index_png_holds_the_classes_and_the_palette(tmp_path):
    classes = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    (tmp_path / "a.png").write_bytes(index_png(classes, default_palette(256)))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), classes)
        colours = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(colours, np.array(default_palette(256), np.uint8)[classes])
    assert os.listdir(tmp_path) == ["a.png"]


def test_index_png_of_many_classes_has_16_bits(tmp_path):
    classes = np.array([[0, 299], [65535, 256]], np.uint16)
    (tmp_path / "a.png").write_bytes(index_png(classes, default_palette(256)))
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), classes)


def test_overlay_is_the_mean_of_picture_and_colour():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 5, 3)).astype(np.uint8)
    classes = rng.integers(0, 4, (300, 5)).astype(np.uint8)
    classes[7] = 255
    palette = ((0, 0, 0), (255, 255, 255), (10, 20, 30))
    mixed = overlay(image, classes, palette)
    known = classes < 3
    expected = (image.astype(float) + np.array(palette, float)[np.where(known, classes, 0)]) / 2
    assert np.abs(mixed[known] - expected[known]).max() <= 0.5
    np.testing.assert_array_equal(mixed[~known], image[~known])
    np.testing.assert_array_equal(overlay(image, classes, palette, alpha=0), image)
    assert (overlay(image, classes, palette, alpha=1)[classes == 1] == 255).all()


def test_overlay_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="picture's size"):
        overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8), default_palette(3))


@pytest.mark.parametrize("width", [1, 30, 400])
def test_legend_goes_below_and_takes_the_pictures_width(tmp_path, width):
    image, classes = np.zeros((9, width, 3), np.uint8), np.zeros((9, width), np.uint8)
    classes[0, 0] = 2
    (tmp_path / "a.png").write_bytes(
        overlay_file("png", image, classes, default_palette(3), names=("road", "sky", "tr\u00e4e"))
    )
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == width
        assert picture.height > 9
    (tmp_path / "b.png").write_bytes(overlay_file("png", image, classes, default_palette(3)))
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.size == (width, 9)


def test_legend_without_entries_is_one_empty_line():
    assert (legend(20, []) == 255).all()
