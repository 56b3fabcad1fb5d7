"""The command predict, without the command line in front: pictures, folders, videos."""

from __future__ import annotations

import os
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.checkpoints.convert import convert
from setr_fast.checkpoints.options import ConvertConfig
from setr_fast.cli import main
from setr_fast.data.reading import PictureReader
from setr_fast.engine.inputs import expand
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.outputs import output_stems
from setr_fast.engine.predict_command import predict_command, predict_files
from setr_fast.engine.predictor import predict
from setr_fast.engine.video import Frame, frames, writing
from setr_fast.errors import BackendError, ConfigError, DataError
from setr_fast.models.model import create_model

INFERENCE = InferenceConfig()
TIMES = (0, 1, 5, 6, 20, 21)
"""When the frames of the film are shown, in thirtieths of a second: not equally far apart."""


@pytest.fixture
def film(tmp_path) -> Path:
    """A film of six frames of 48 x 64 and a second of sound."""
    av = pytest.importorskip("av")
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=30)
        pictures.width, pictures.height, pictures.pix_fmt, pictures.gop_size = 64, 48, "yuv420p", 1
        pictures.codec_context.time_base = Fraction(1, 30)
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for number, when in enumerate(TIMES):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 30 * number + 20, np.uint8), format="rgb24")
            frame.pts, frame.time_base = when, Fraction(1, 30)
            container.mux(pictures.encode(frame))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux([*pictures.encode(), *sound.encode()])
    return path


def test_predict_writes_class_map_and_overlay_at_the_pictures_size(checkpoint, make_model, make_picture, tmp_path):
    (tmp_path / "in").mkdir()
    for name, size in (("a.png", (40, 70)), ("b.c.png", (5, 90))):
        Image.fromarray(make_picture(*size)).save(tmp_path / "in" / name)
    predict_command(checkpoint, [tmp_path / "in"], tmp_path / "new" / "out", INFERENCE)
    assert sorted(os.listdir(tmp_path / "new/out")) == ["a.png", "a_overlay.jpg", "b.c.png", "b.c_overlay.jpg"]
    for name in ("a", "b.c"):
        expected = predict(make_model(), tmp_path / "in" / f"{name}.png")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new/out" / f"{name}.png")), expected)
        assert Image.open(tmp_path / "new/out" / f"{name}_overlay.jpg").size == expected.shape[::-1]


def test_folders_below_are_searched_and_kept_but_not_the_results_of_an_earlier_run(checkpoint, make_picture, tmp_path):
    folder = tmp_path / "in"
    for name in ("a.png", "x/a.png", "x/y/b.png", ".hidden/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_picture(9, 12)).save(folder / name)
    (folder / "again").symlink_to(folder)
    for _ in range(2):
        predict_command(checkpoint, [folder, folder / "x" / "y"], folder / "out", INFERENCE, overlays="none")
        found = sorted(str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*.png"))
        assert found == ["a.png", "x/a.png", "x/y/b.png"]


def test_further_channels_lie_in_folders_as_the_pictures_do(make_picture, tmp_path, make_model, monkeypatch):
    given: list[Path | None] = []
    monkeypatch.setattr(PictureReader, "file", lambda self, path, more=None: given.append(more) or make_picture(8, 8))
    for name in ("in/x/a.png", "more/x/a.png", "more/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_picture(8, 8)).save(tmp_path / name)
    files = expand([tmp_path / "in"], tmp_path / "out")
    predict_files(make_model(), files, tmp_path / "out", INFERENCE, tmp_path / "more")
    assert given == [tmp_path / "more" / "x" / "a.png"]


def test_broken_pictures_are_named_and_the_others_are_done(checkpoint, make_picture, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(make_picture(30, 30)).save(folder / "good.png")
    whole = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    with pytest.raises(DataError, match="2 of 3") as caught:
        predict_command(checkpoint, [folder], tmp_path / "out", INFERENCE)
    assert caught.value.exit_code == 3
    assert sorted(os.listdir(tmp_path / "out")) == ["good.png", "good_overlay.jpg"]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "cut.png" in errors[0]
    assert "empty.jpg" in errors[1]


def test_a_missing_file_does_not_stop_the_others(checkpoint, make_picture, tmp_path, capsys):
    Image.fromarray(make_picture(9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="1 of 2"):
        predict_command(checkpoint, [tmp_path / "gone.jpg", tmp_path / "a.png"], tmp_path / "out", INFERENCE)
    assert "gone.jpg" in capsys.readouterr().err
    assert len(os.listdir(tmp_path / "out")) == 2


def test_the_same_file_twice_is_done_once(checkpoint, make_picture, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(make_picture(9, 9)).save(tmp_path / "in/a.png")
    predict_command(
        checkpoint, [tmp_path / "in", tmp_path / "in/a.png", tmp_path / "in/../in/a.png"], tmp_path / "out", INFERENCE
    )
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "a_overlay.jpg"]


def test_an_output_folder_that_cannot_be_is_a_usage_error(checkpoint, make_picture, tmp_path):
    Image.fromarray(make_picture(9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="out"):
        predict_command(checkpoint, [tmp_path / "a.png"], tmp_path / "a.png", INFERENCE)


def test_the_names_of_a_pictures_results_reach_the_disk_together(make_model, make_picture, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for file in files:
        Image.fromarray(make_picture(9, 9)).save(file)
    seen: list[list[str]] = []
    monkeypatch.setattr("setr_fast.engine.pipeline.stage_threads", lambda in_turns: 1)
    monkeypatch.setattr("setr_fast.files.sync_folder", lambda folder: seen.append(sorted(os.listdir(folder))))
    predict_files(make_model(), files, tmp_path / "out", INFERENCE)
    assert [len(names) for names in seen] == [2, 4, 6]
    assert seen[0] == ["0.png", "0_overlay.jpg"]


def test_overlays_may_be_png_or_none(checkpoint, make_picture, tmp_path):
    Image.fromarray(make_picture(30, 30)).save(tmp_path / "a.png")
    for overlays, names in (("png", ["a.png", "a_overlay.png"]), ("none", ["a.png"])):
        predict_command(checkpoint, [tmp_path / "a.png"], tmp_path / overlays, INFERENCE, overlays=overlays)
        assert sorted(os.listdir(tmp_path / overlays)) == names
    assert Image.open(tmp_path / "png/a_overlay.png").format == "PNG"


def test_a_film_gives_class_maps_times_and_a_silent_film_shown_at_the_same_times(make_model, film, tmp_path, capsys):
    av = pytest.importorskip("av")
    (tmp_path / "out").mkdir()
    predict_files(make_model(), [film], tmp_path / "out", INFERENCE)
    assert sorted(os.listdir(tmp_path / "out")) == ["film_frames", "film_overlay.mp4"]
    folder = tmp_path / "out" / "film_frames"
    assert sorted(os.listdir(folder)) == [*(f"{number:06d}.png" for number in range(6)), "times.csv"]
    header, *lines = (folder / "times.csv").read_text().splitlines()
    assert header == "frame,seconds"
    assert [float(line.split(",")[1]) for line in lines] == pytest.approx([when / 30 for when in TIMES], abs=2e-3)
    with av.open(str(tmp_path / "out" / "film_overlay.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        shown = [(frame.time, frame.to_ndarray(format="rgb24").shape) for frame in container.decode(video=0)]
    assert [time for time, _ in shown] == pytest.approx([when / 30 for when in TIMES], abs=2e-3)
    assert {shape for _, shape in shown} == {(48, 64, 3)}
    with av.open(str(film)) as container:
        frame = list(container.decode(video=0))[4].to_ndarray(format="rgb24")
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "000004.png")), predict(make_model(), frame))
    assert "film.mkv ->" in capsys.readouterr().out


def test_a_film_alone_has_no_overlay_when_none_is_asked_for(make_model, film, tmp_path):
    (tmp_path / "out").mkdir()
    predict_files(make_model(), [film], tmp_path / "out", INFERENCE, overlays="none")
    assert os.listdir(tmp_path / "out") == ["film_frames"]


def test_what_is_no_film_leaves_nothing_half_done(make_model, make_picture, tmp_path, capsys):
    pytest.importorskip("av")
    (tmp_path / "clip.MP4").write_bytes(b"\0" * 5000)
    (tmp_path / "out").mkdir()
    Image.fromarray(make_picture(9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="1 of 2"):
        predict_files(make_model(), [tmp_path / "clip.MP4", tmp_path / "a.png"], tmp_path / "out", INFERENCE)
    assert "clip.MP4" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "a_overlay.jpg"]


def made_film(path: Path, frames: int, gop: int, **container_options: str) -> bytes:
    """Write a film of noise, 5 frames a second, and return the file's bytes."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=container_options) as container:
        pictures = container.add_stream("mpeg4", rate=5)
        pictures.width, pictures.height, pictures.pix_fmt, pictures.gop_size = 64, 48, "yuv420p", gop
        for frame in np.random.default_rng(0).integers(0, 256, (frames, 48, 64, 3), np.uint8):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(pictures.encode())
    return path.read_bytes()


def test_what_the_encoder_looks_ahead_at_follows_from_the_room(tmp_path):
    av = pytest.importorskip("av")
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no libx264, which alone looks ahead")
    before_the_first = []
    for room in (10, 4 * 48 * 64 * 10, 10**9):
        with writing(tmp_path / "film.mp4", room) as writer:
            packets = []
            for number in range(90):
                pixels = np.full((48, 64, 3), 2 * number, np.uint8)
                writer.add(Frame(pixels, number, Fraction(1, 25)), pixels)
                packets.append(writer.written)
            before_the_first.append(packets.index(next(filter(None, packets))))
        assert sum(1 for _ in frames(tmp_path / "film.mp4")) == 90
    least, some, most = before_the_first
    assert most - some == 30
    assert least < some


def test_of_a_film_that_ends_before_its_own_length_what_was_read_is_kept(make_model, tmp_path, capsys):
    """A reader of Matroska takes the end of the file for the end of the film."""
    whole = made_film(tmp_path / "film.mkv", 20, 1)
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="1 of 2"):
        predict_files(make_model(), [tmp_path / "cut.mkv", tmp_path / "film.mkv"], tmp_path / "out", INFERENCE)
    (told,) = capsys.readouterr().err.splitlines()
    assert "of 4.0 seconds; copy the file again" in told
    made = ["cut_frames", "cut_overlay.mp4", "film_frames", "film_overlay.mp4"]
    assert sorted(os.listdir(tmp_path / "out")) == made
    assert len(os.listdir(tmp_path / "out" / "film_frames")) == 21
    kept = os.listdir(tmp_path / "out" / "cut_frames")
    assert 5 <= len(kept) < 15
    assert f"{len(kept) - 1} frames are in cut_frames" in told


def test_a_fragmented_film_cut_within_a_fragment_exits_3_and_keeps_the_frames_before(tmp_path, capsys):
    """Such files have no index in front: whatever lies before the cut can be read, and a decoder says nothing."""
    whole = made_film(tmp_path / "whole.mp4", 24, 4, movflags="frag_keyframe+empty_moov+default_base_moof")
    fragments = [at for at in range(len(whole)) if whole.startswith(b"moof", at)]
    assert len(fragments) == 24, "a fragment for each frame"
    cut = (fragments[14] + fragments[15]) // 2
    (tmp_path / "cut.mp4").write_bytes(whole[:cut])
    create_model("setr_naive_vit_t16", 5, 32, depth=1, width=32, num_heads=2, taps=(0,), head_channels=8).save(
        tmp_path / "model"
    )
    arguments = ["predict", str(tmp_path / "cut.mp4"), str(tmp_path / "whole.mp4")]
    code = main(
        [*arguments, "--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    )
    assert code == 3
    cut_line, last = capsys.readouterr().err.splitlines()
    assert "cut.mp4: must be a complete video" in cut_line
    assert "1 of 2" in last
    names = {film: sorted(os.listdir(tmp_path / "out" / f"{film}_frames")) for film in ("cut", "whole")}
    assert len(names["whole"]) == 25
    assert names["cut"] == [*names["whole"][:14], "times.csv"], "no frame whose end is missing"
    assert "14 frames are in cut_frames" in cut_line
    for name in names["cut"][:14]:
        same = [np.asarray(Image.open(tmp_path / "out" / f"{film}_frames" / name)) for film in ("cut", "whole")]
        np.testing.assert_array_equal(*same)
    times = [(tmp_path / "out" / f"{film}_frames" / "times.csv").read_text().splitlines() for film in ("cut", "whole")]
    assert times[0] == times[1][:15]


def test_interrupted_it_stops_at_once_and_leaves_whole_files(make_model, make_picture, tmp_path, monkeypatch):
    files = [tmp_path / f"{index}.png" for index in range(30)]
    for path in files:
        Image.fromarray(make_picture(30, 30)).save(path)
    done = 0

    def interrupted(*args, **named):
        nonlocal done
        done += 1
        if done == 4:
            raise KeyboardInterrupt
        return predict(*args, **named)

    monkeypatch.setattr("setr_fast.engine.predict_command.predict", interrupted)
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        predict_files(make_model(), files, tmp_path / "out", INFERENCE)
    written = os.listdir(tmp_path / "out")
    assert len(written) <= 6
    for name in written:
        assert Image.open(tmp_path / "out" / name).size == (30, 30)
        Image.open(tmp_path / "out" / name).load()


def test_a_video_without_its_reader_is_refused_before_any_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendError, match="pip install av") as caught:
        predict_command(checkpoint, [tmp_path / "clip.mp4"], tmp_path / "out", INFERENCE)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["images", "exif", "names"])
def test_hostile_folder_is_done_or_refused_file_by_file(checkpoint, shared, tmp_path, capsys, make_model, folder):
    """Every file gives a map of its upright size inside the output folder, or is named on stderr."""
    files = sorted(path for path in (shared / "data" / "hostile" / folder).iterdir())
    files = [path for path in files if path.name != "size_8000x6000.jpg"]  # in fixed memory, but slow: see below
    out = tmp_path / "out"
    try:
        predict_command(checkpoint, files, out, INFERENCE)
        failed = 0
    except DataError as error:
        failed = int(str(error).split("got ")[1].split(" ")[0])
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == failed
    refused = {path for path in files if any(path.name in line for line in errors)}
    assert len(refused) == failed
    assert len(os.listdir(out)) == 2 * (len(files) - failed)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}, "nothing is written elsewhere"
    if folder == "exif":
        assert not refused
        assert {Image.open(path).size for path in out.iterdir()} >= {(96, 64)}
    if folder == "names":
        assert not refused
        assert (out / "..%2F..%2Fescape.png").is_file()
        assert {path.stem for path in files} == {
            path.name[:-4] for path in out.iterdir() if "_overlay" not in path.name
        }
    if folder == "images":
        must_fail = {"truncated_half.jpg", "truncated_header.jpg", "truncated.png", "corrupt_crc.png", "zero_byte.jpg"}
        must_fail |= {"zero_byte.png", "text_file.png", "html_error_page.jpg", "random_bytes.jpg", "lfs_pointer.png"}
        must_fail |= {"bomb_header_60000x60000.png", "zero_size_header.png"}
        assert must_fail <= {path.name for path in refused}
        for name, size in (("size_5000x3_panorama", (5000, 3)), ("size_1x1", (1, 1)), ("size_odd_223x97", (223, 97))):
            assert Image.open(out / f"{name}.png").size == size


@pytest.mark.slow
def test_a_48_megapixel_picture_is_done_within_a_gigabyte(shared, tmp_path, make_model):
    resource = pytest.importorskip("resource")
    picture = shared / "data/hostile/images/size_8000x6000.jpg"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = make_model(image_size=(512, 512), num_classes=8)
    started = time.perf_counter()
    predict_files(model, [picture], tmp_path, INFERENCE)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert Image.open(tmp_path / "size_8000x6000.png").size == (8000, 6000)
    # picture and overlay 144 MB each, class map 48 MB; all logits at once would be 1536 MB
    assert grown < 1024, f"{grown:.0f} MiB in {time.perf_counter() - started:.0f} s"


def test_predict_reads_a_weights_file_of_another_code_base(tmp_path: Path) -> None:
    model = create_model("segmenter_mask_vit_t16", 5, 64, depth=2, stride=(32, 32))
    model.save(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "theirs.pth", ConvertConfig(to="segmenter"))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for source, out in ((tmp_path / "native", "ours"), (tmp_path / "theirs.pth", "theirs")):
        predict_command(source, [tmp_path / "a.png"], tmp_path / out, INFERENCE)
    ours, theirs = (np.array(Image.open(tmp_path / name / "a.png")) for name in ("ours", "theirs"))
    assert len(np.unique(ours)) > 1
    np.testing.assert_array_equal(ours, theirs)


def test_links_in_a_circle_are_named_and_the_others_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    Image.new("RGB", (9, 7)).save(tmp_path / "c.png")
    assert [file.path.name for file in expand([tmp_path / "a.png", tmp_path / "c.png"], tmp_path / "out")] == [
        "a.png",
        "c.png",
    ]
    assert output_stems([tmp_path / "a.png", tmp_path / "c.png"], tmp_path / "out") == ["a", "c"]
