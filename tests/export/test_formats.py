"""Files in each format: what is written runs without the model, agrees with it, and says so in its receipt."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.errors import BackendError, ConfigError
from setr_fast.export import commands
from setr_fast.export.agreement import answer, draw_pictures
from setr_fast.export.commands import export_command, export_model, receipt_path
from setr_fast.export.options import ExportConfig
from setr_fast.export.project import SOURCES, ops_library

HEADS = ("naive", "pup", "mla", "linear", "mask")
PROJECT = Path(commands.__file__).parent / "project_files"


def test_a_full_disk_says_so_and_leaves_nothing(make_small, tmp_path, monkeypatch):
    def full(program, target):
        Path(target).write_bytes(b"half")
        raise RuntimeError(
            "[enforce fail at x.cc:1] . PytorchStreamWriter failed writing file data/3: file write failed"
        )

    make_small("naive").save(tmp_path / "model")
    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        export_command(tmp_path / "model", tmp_path / "new" / "model.pt2", ExportConfig())
    assert list((tmp_path / "new").glob("*")) == []


def test_a_torch_program_runs_without_this_package(make_small, tmp_path, capsys):
    model = make_small("pup")
    model.save(tmp_path / "model")
    out = tmp_path / "new" / "model.pt2"
    receipt = export_command(tmp_path / "model", out, ExportConfig())
    assert sorted(os.listdir(tmp_path / "new")) == ["model.pt2", "model.pt2.receipt.json"]
    assert json.loads(receipt_path(out, ExportConfig()).read_text()) == receipt
    assert receipt["agreement"]["agreement"] >= 0.9999
    assert len(receipt["agreement"]["sizes"]) == 20
    assert receipt["file"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    weights = hashlib.sha256((tmp_path / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert receipt["weights_sha256"] == weights
    assert receipt["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "as in Python" in capsys.readouterr().out
    pictures = draw_pictures(3, 77, 35, seed=5)
    np.save(tmp_path / "in.npy", pictures.numpy())
    code = (
        "import sys; sys.modules['setr_fast'] = None\n"
        "import numpy, torch\n"
        f"run = torch.export.load({str(out)!r}).module()\n"
        f"pictures = torch.from_numpy(numpy.load({str(tmp_path / 'in.npy')!r}))\n"
        f"numpy.save({str(tmp_path / 'out.npy')!r}, run(pictures).numpy())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = answer(model, pictures)[1].numpy()
    assert (np.load(tmp_path / "out.npy") == wanted).mean() >= 0.9999


@pytest.mark.parametrize(
    "head", [pytest.param(head, marks=pytest.mark.slow) for head in HEADS if head != "mask"] + ["mask"]
)
def test_onnx_runs_in_onnxruntime_at_any_size(make_small, tmp_path, head):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, out = make_small(head), tmp_path / "model.onnx"
    told = export_model(model, out, ExportConfig(format="onnx"))["agreement"]
    assert told["agreement"] >= 0.9999
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("pictures", "tensor(uint8)", ["batch", "height", "width", 3])
    assert (given.name, given.type, given.shape) == ("classes", "tensor(uint8)", ["batch", "height", "width"])


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["portable", "own"])
@pytest.mark.parametrize("head", HEADS)
def test_torch_programs_of_all_heads(make_small, tmp_path, head, kernels):
    config = ExportConfig(kernels=kernels)
    told = export_model(make_small(head), tmp_path / "model.pt2", config)["agreement"]
    assert told["agreement"] == 1.0 if kernels == "own" else told["agreement"] >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "changes"), [("linear", {"pos_resize": "none"}), ("pup", {"fit": "floor", "resize_to": "input"})]
)
def test_programs_of_models_that_take_less(make_small, tmp_path, head, changes):
    receipt = export_model(make_small(head, **changes), tmp_path / "model.pt2", ExportConfig(sizes=6))
    assert receipt["agreement"]["agreement"] >= 0.9999
    assert ("64 and 64" if head == "linear" else "8 or more") in receipt["constraints"][0]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_aoti_packages_of_all_heads(make_small, tmp_path, head):
    kernels = "own" if head in ("pup", "mask") else "portable"
    config = ExportConfig(format="aoti", kernels=kernels)
    assert export_model(make_small(head), tmp_path / "model.pt2", config)["agreement"]["agreement"] >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["portable", "own"])
def test_the_cpp_project_builds_and_segments_a_picture(make_small, tmp_path, kernels):
    cmake = pytest.importorskip("cmake")
    model, out = make_small("pup"), tmp_path / "project"
    export_model(model, out, ExportConfig(format="cpp", kernels=kernels))
    libraries = [ops_library().name] if kernels == "own" else []
    assert sorted(os.listdir(out)) == sorted([*SOURCES, *libraries, "model.pt2", "receipt.json"])
    tool = shutil.which("cmake", path=cmake.CMAKE_BIN_DIR) or shutil.which("cmake")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in ([tool, "-B", "build", prefix], [tool, "--build", "build"]):
        done = subprocess.run(command, cwd=out, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for height, width, ending in ((61, 94, "png"), (128, 40, "ppm")):
        pixels = draw_pictures(1, height, width, seed=height)[0].numpy()
        Image.fromarray(pixels).save(tmp_path / f"picture.{ending}")
        command = [out / "build" / "segment", out / "model.pt2", tmp_path / f"picture.{ending}", tmp_path / "mask.png"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = np.asarray(Image.open(tmp_path / "mask.png"))
        assert (found == predict(model, pixels, InferenceConfig(mode="whole"))).mean() >= 0.9999
    done = subprocess.run([command[0], command[1], tmp_path / "no.png", "mask.png"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_the_cpp_project_reads_and_writes_pictures_as_pillow_does(tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "copy.cpp").write_text(
        '#include <cstdio>\n#include "pictures.h"\n'
        "int main(int n, char** arg) try {\n"
        "  const auto p = pictures::read(arg[1]);\n"
        "  pictures::write_png(arg[2], p.rgb.data(), p.height, n > 3 ? p.width * 3 / 2 : p.width * 3, n > 3 ? 2 : 1);\n"
        "  return 0;\n} catch (const std::exception& e) { std::puts(e.what()); return 1; }\n"
    )
    program = tmp_path / "copy"
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{PROJECT}", "-fsanitize=address,undefined"]
    subprocess.run([compiler, *flags, tmp_path / "copy.cpp", "-o", program], check=True)
    pixels = draw_pictures(1, 61, 94, seed=2)[0].numpy()
    picture = Image.fromarray(pixels)
    flat = Image.fromarray(np.zeros((200, 310, 3), np.uint8))
    written = {
        "rgb.png": (picture, {}),
        "grey.png": (picture.convert("L"), {}),
        "alpha.png": (picture.convert("RGBA"), {"compress_level": 1}),
        "grey_alpha.png": (picture.convert("LA"), {}),
        "palette.png": (picture.quantize(40), {}),
        "stored.png": (picture, {"compress_level": 0}),
        "fixed_codes.png": (flat, {"compress_type": 4}),
        "long_runs.png": (flat, {}),
        "plain.ppm": (picture, {}),
    }
    for name, (image, how) in written.items():
        image.save(tmp_path / name, **how)
        subprocess.run([program, tmp_path / name, tmp_path / "out.png"], check=True)
        wanted = np.asarray(image.convert("RGBA").convert("RGB"))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")).reshape(wanted.shape), wanted, name)
    subprocess.run([program, tmp_path / "rgb.png", tmp_path / "out.png", "wide"], check=True)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")).ravel(), pixels.ravel().view(np.uint16))
    whole = (tmp_path / "rgb.png").read_bytes()
    for cut in (0, 3, 20, 40, len(whole) // 2, len(whole) - 13):
        (tmp_path / "cut.png").write_bytes(whole[:cut])
        done = subprocess.run([program, tmp_path / "cut.png", tmp_path / "no.png"], capture_output=True, text=True)
        assert done.returncode == 1, (cut, done.stderr)
        assert "must" in done.stdout


def test_refusals_name_the_remedy(make_small, tmp_path, monkeypatch):
    model = make_small("linear")
    model.save(tmp_path / "model")
    for name, config, told in (
        ("a.onnx", ExportConfig(), "--out a.pt2"),
        ("model", ExportConfig(format="cpp"), "must be a new folder"),
        ("model/config.json", ExportConfig(format="cpp"), "must be a folder for cpp"),
    ):
        with pytest.raises(ConfigError, match=told):
            export_command(tmp_path / "model", tmp_path / name, config)
    with pytest.raises(ConfigError, match="must be portable for onnx"):
        ExportConfig(format="onnx", kernels="own")
    with pytest.raises(ConfigError, match=r"sizes: must lie in 0\.\.10000"):
        ExportConfig(sizes=-1)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(BackendError, match=r"needs onnxruntime, .* pip install 'setr_fast\[export\]'") as caught:
        export_command(tmp_path / "model", tmp_path / "a.onnx", ExportConfig(format="onnx"))
    assert caught.value.exit_code == 4
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendError, match="needs a C\\+\\+ compiler"):
        export_command(tmp_path / "model", tmp_path / "a.pt2", ExportConfig(format="aoti"))
    assert os.listdir(tmp_path) == ["model"]


def test_a_result_that_disagrees_is_not_left_behind(make_small, tmp_path, monkeypatch):
    def write(model, config, target):
        target.write_bytes(b"program")
        return lambda pictures: np.zeros(pictures.shape[:3], np.uint8)

    monkeypatch.setattr(commands, "write", write)
    with pytest.raises(BackendError, match=r"must agree with the model in Python for a share of 0\.9999"):
        export_model(make_small("pup"), tmp_path / "a.pt2", ExportConfig(sizes=3))
    assert os.listdir(tmp_path) == []
    receipt = export_model(make_small("pup"), tmp_path / "a.pt2", ExportConfig(sizes=3, least_agreement=0.0))
    assert receipt["agreement"]["different"] > 0
    assert sorted(os.listdir(tmp_path)) == ["a.pt2", "a.pt2.receipt.json"]
