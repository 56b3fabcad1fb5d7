"""``setr-fast convert`` as users run it: results, certificates, exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import setr_fast
from setr_fast.checkpoints.certificate import tensors_sha256
from setr_fast.checkpoints.convert import convert
from setr_fast.checkpoints.options import ConvertConfig
from setr_fast.cli import main
from setr_fast.errors import CheckpointError, ConfigError
from tests.checkpoints.random_models import foreign_tensors, overrides_of, random_spec, random_state, write_file


@pytest.fixture
def model_file(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A file of mmsegmentation and what its weights do not say."""
    spec = random_spec("mmseg", "pup", 3)
    tensors = foreign_tensors("mmseg", spec, random_state(spec, "mmseg", 3))
    return write_file("mmseg", tensors, tmp_path), overrides_of(spec)


def _flags(overrides: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in overrides.items():
        values = value if isinstance(value, tuple) else (value,)
        flags += [f"--{name.replace('_', '-')}", *map(str, values)]
    return flags


def test_the_command_converts_and_certifies(
    model_file: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, overrides = model_file
    assert main(["convert", str(path), str(tmp_path / "ours"), *_flags(overrides)]) == 0
    out = capsys.readouterr().out
    model, direct = setr_fast.load(tmp_path / "ours"), setr_fast.load(path, **overrides)
    assert model.spec == direct.spec
    assert all(torch.equal(tensor, direct.state_dict()[name]) for name, tensor in model.state_dict().items())
    values = json.loads((tmp_path / "ours" / "certificate.json").read_text())
    keys = values["keys"]
    held = list(torch.load(path, weights_only=True)["state_dict"])
    used = [key for sources in keys["used"].values() for key in sources]
    assert sorted([*used, *keys["dropped"]]) == sorted(held)
    assert keys["used"].keys() | keys["filled"].keys() == model.state_dict().keys()
    assert keys["counts"] == {"used": len(used), "dropped": len(keys["dropped"])}
    assert values["source"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    result = tmp_path / "ours" / "model.safetensors"
    assert values["result"]["sha256"] == hashlib.sha256(result.read_bytes()).hexdigest()
    assert values["tensors_sha256"] == tensors_sha256(model.state_dict())
    assert (values["source"]["family"], values["result"]["family"]) == ("mmseg", "native")
    assert values["forward"] is None
    assert f"keys: {len(used)} used" in out
    assert "certificate" in out


@pytest.mark.parametrize(
    "name",
    ["setr-official-mla", "mmseg-segmenter-mask", "paddleseg-setr-pup", "paddlevit-setr-naive", "segmenter-mask"],
)
def test_a_recorded_forward_is_met_and_certified(shared: Path, tmp_path: Path, name: str) -> None:
    from tests.models.recorded import read_recorded

    recorded = read_recorded(shared / "fixtures/parity" / name)
    overrides = dict(recorded.overrides)
    size = overrides.pop("image_size")
    config = ConvertConfig(
        recorded=recorded.folder / "data.npz", image_size=size if isinstance(size, tuple) else (size,), **overrides
    )
    values = convert(recorded.folder / recorded.config["weights"], tmp_path / "m", config)
    forward = values["forward"]
    allowed = recorded.config["f32_minus_f64_max_abs"]["case0"]
    assert {"logits", "logits_low"} <= forward["max_abs_difference"].keys()
    for output, difference in forward["max_abs_difference"].items():
        assert difference <= min(10 * allowed[output], 1e-4), output
    assert forward["largest"] == max(forward["max_abs_difference"].values())
    assert forward["recorded"] == "data.npz"


def test_a_wrong_setting_shows_in_the_recorded_forward(shared: Path, tmp_path: Path) -> None:
    folder = shared / "fixtures/parity/segmenter-mask"
    shutil.copy(folder / "checkpoint.pth", tmp_path)
    config = ConvertConfig(
        recorded=folder / "data.npz", num_heads=4, decoder_num_heads=1, image_size=(64,), layer_norm_eps=1e-6
    )
    assert convert(tmp_path / "checkpoint.pth", tmp_path / "m", config)["forward"]["largest"] > 0.01


@pytest.mark.parametrize("to", ["mmseg", "segmenter", "official", "paddleseg"])
def test_there_and_back_again(tmp_path: Path, to: str) -> None:
    family, head = {"official": ("setr", "mla"), "segmenter": ("segmenter", "mask")}.get(to, (to, "naive"))
    spec = random_spec(family, head, 1)
    side = spec.pos_grid[0]
    size = (side * spec.patch_size,) * 2
    spec = spec.replace(pos_grid=(side, side), image_size=size)
    path = write_file(family, foreign_tensors(family, spec, random_state(spec, family, 1)), tmp_path)
    model = setr_fast.load(path, **overrides_of(spec))
    model.save(tmp_path / "ours")
    again = tmp_path / "there" / path.name
    values = convert(tmp_path / "ours", again, ConvertConfig(to=to))
    assert values["read_back"] == "equal to the bit"
    assert values["written"]["weights"] == path.name
    assert json.loads(again.with_name(path.name + ".certificate.json").read_text())["source"]["family"] == "native"
    back = setr_fast.load(again)
    assert back.spec.replace(name=spec.name, stride=spec.stride) == spec
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_class_names_and_colours_travel(tmp_path: Path) -> None:
    spec = random_spec("mmseg", "linear", 0).replace(num_classes=2, class_names=("road", "sky"))
    spec = spec.replace(palette=((1, 2, 3), (4, 5, 6)))
    torch.save(
        {
            "state_dict": foreign_tensors("mmseg", spec, random_state(spec, "mmseg")),
            "meta": {"CLASSES": ("road", "sky"), "PALETTE": [[1, 2, 3], [4, 5, 6]]},
        },
        tmp_path / "a.pth",
    )
    setr_fast.load(tmp_path / "a.pth", **overrides_of(spec)).save(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "b.pth", ConvertConfig(to="mmseg"))
    back = setr_fast.load(tmp_path / "b.pth")
    assert (back.spec.class_names, back.spec.palette) == (spec.class_names, spec.palette)


def test_an_encoder_gets_a_head_on_request(tmp_path: Path) -> None:
    spec = random_spec("timm", "none", 0)
    tensors = foreign_tensors("timm", spec, random_state(spec, "timm"))
    path = write_file("timm", tensors | {"head.weight": torch.ones(10, spec.width)}, tmp_path)
    config = ConvertConfig(num_heads=spec.num_heads, num_classes=5, image_size=(64, 48), set=("head=naive", "taps=[0]"))
    values = convert(path, tmp_path / "n", config)
    model = setr_fast.load(tmp_path / "n")
    assert model.spec.num_classes == 5
    assert model(torch.zeros(1, 3, 64, 48)).shape == (1, 5, 64, 48)
    assert "head.classifier.weight" in values["reinit"]["fresh"]
    assert values["keys"]["dropped"]["head.weight"] == "ImageNet's classifier"


BAD: dict[str, tuple[list[str], int, str]] = {
    "unknown target": (["--to", "mseg"], 2, "did you mean mmseg"),
    "unknown family": (["--family", "tim"], 2, "--family must be"),
    "wrong family": (["--family", "segmenter"], 3, "must be a file of official Segmenter, got mmsegmentation"),
    "head that does not exist": (["--to", "segmenter"], 2, "must be written as mmseg, paddleseg, setr, got segmenter"),
    "other classes": (["--num-classes", "99"], 3, "--reinit-head"),
    "unknown field": (["--set", "wdth=3"], 2, "did you mean width"),
    "no value": (["--set", "width"], 2, "must be name=value"),
    "recorded that is none": (["--recorded", __file__], 3, "must end with the directory of a zip file"),
    "reinit without classes": (["--reinit-head"], 2, "give --num-classes"),
    "match without names": (["--reinit-head", "--num-classes", "4", "--match-classes"], 2, "must have names"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_line_with_an_exit_code(
    case: str, model_file: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, overrides = model_file
    flags, code, words = BAD[case]
    target = tmp_path / "made" / "x.pth"
    assert main(["convert", str(path), str(target), *_flags(overrides), *flags]) == code
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert not target.exists()


class _Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_hostile_files_are_exit_3_and_leave_nothing(
    model_file: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path, overrides = model_file
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)["state_dict"]
    nan = {**state, "decode_head.conv_seg.bias": torch.full_like(state["decode_head.conv_seg.bias"], float("nan"))}
    more = {**state, "decode_head.extra.weight": torch.ones(3)}
    less = {name: tensor for name, tensor in state.items() if name != "backbone.layers.0.ln1.weight"}
    shape = {**state, "backbone.layers.0.ln1.weight": torch.ones(3)}
    cases: dict[str, tuple[Any, str]] = {
        "empty": (b"", "got 0 bytes"),
        "cut": (whole[: len(whole) // 2], "cut off"),
        "runs": (pickle.dumps({"a": _Runs()}, 4), "posix.system"),
        "nan": (nan, "must be finite, got"),
        "more": (more, "decode_head.extra.weight [3] is not known"),
        "less": (less, "backbone.layers.0.ln1.weight is missing"),
        "shape": (shape, "backbone.layers.0.ln1.weight must be"),
        "none": ({"some.weight": torch.ones(2)}, "must be a checkpoint of"),
    }
    for name, (content, words) in cases.items():
        bad = tmp_path / f"{name}.pth"
        if isinstance(content, bytes):
            bad.write_bytes(content)
        else:
            torch.save({"state_dict": content}, bad)
        assert main(["convert", str(bad), str(tmp_path / "made"), *_flags(overrides)]) == 3, name
        error = capsys.readouterr().err.strip()
        assert words in error, name
        assert "\n" not in error
        assert not (tmp_path / "made").exists()
    assert not (tmp_path / "ran").exists()


def test_recorded_outputs_of_another_shape_are_refused(model_file: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, overrides = model_file
    size = overrides.pop("image_size")
    np.savez(tmp_path / "r.npz", input=np.zeros((1, 3, *size), np.float32), logits=np.zeros((1, 1, 1, 1), np.float32))
    config = ConvertConfig(recorded=tmp_path / "r.npz", image_size=size, **overrides)
    with pytest.raises(CheckpointError, match=r"logits must be \[1, 1, 1, 1\] as recorded, got"):
        convert(path, tmp_path / "m", config)
    np.savez(tmp_path / "r.npz", x=np.zeros(3))
    with pytest.raises(CheckpointError, match="must hold input and logits or logits_low, got nothing"):
        convert(path, tmp_path / "m", config)


def test_source_and_result_must_differ(tmp_path: Path) -> None:
    model = setr_fast.create_model("setr_naive_vit_t16", num_classes=3, image_size=64)
    model.save(tmp_path / "m")
    with pytest.raises(ConfigError, match="DST must be another place than SRC"):
        convert(tmp_path / "m", tmp_path / "m", ConvertConfig())
