"""Saving and loading model folders, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.models.store import load_model, save_model

SMALL = {"width": 16, "num_heads": 2, "depth": 2, "patch_size": 8, "head_channels": 8, "image_size": 16}


def small(name: str = "setr_mla_vit_t16", **changes: object) -> SegmentationModel:
    return create_model(name, 3, **(SMALL | changes))


@pytest.mark.parametrize(
    "name", ["setr_naive_vit_t16", "setr_pup_vit_t16", "setr_mla_vit_t16", "segmenter_mask_vit_t16"]
)
def test_a_saved_model_comes_back_equal(name: str, tmp_path: Path) -> None:
    model = small(name, class_names=("road", "sky", "tree"))
    model.loss(torch.randn(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.uint8))  # moves the statistics
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    image = torch.randn(1, 3, 20, 11)
    assert loaded.spec == model.spec
    assert not loaded.training
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert torch.equal(loaded(image), model.eval()(image))
    loaded.train().loss(torch.randn(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.uint8)).backward()


def test_the_config_carries_the_class_names(tmp_path: Path) -> None:
    small(class_names=("road", "sky", "tree")).save(tmp_path / "named")
    config = json.loads((tmp_path / "named" / "config.json").read_text())
    assert config["id2label"] == {"0": "road", "1": "sky", "2": "tree"}
    assert config["label2id"] == {"road": 0, "sky": 1, "tree": 2}
    small().save(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["id2label"]["2"] == "class 2"


def test_sixteen_bit_weights_are_loaded_as_float32(tmp_path: Path) -> None:
    small().bfloat16().save(tmp_path / "model")
    assert load_model(tmp_path / "model").encoder.pos_embed.dtype == torch.float32


def test_saving_again_replaces_the_model_and_writes_extra_files(tmp_path: Path) -> None:
    first, second = small(), small("setr_pup_vit_t16")
    save_model(first, tmp_path / "model", extra_files={"notes.txt": "one", "state.bin": b"\0"})
    assert (tmp_path / "model" / "notes.txt").read_text() == "one"
    save_model(second, tmp_path / "model")
    assert load_model(tmp_path / "model").spec == second.spec
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"], "no temporary folder may stay"


def test_a_save_that_fails_leaves_the_old_model(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        save_model(small("setr_pup_vit_t16"), tmp_path / "model", extra_files={"no/such/folder": "x"})
    assert load_model(tmp_path / "model").spec == model.spec
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_other_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="got other files"):
        small().save(tmp_path / "photos")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ConfigError, match="must be a folder, got a file"):
        small().save(tmp_path / "file")
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_overrides_change_the_loaded_spec(tmp_path: Path) -> None:
    small().save(tmp_path / "model")
    assert load_model(tmp_path / "model", align_corners=True).spec.align_corners
    with pytest.raises(CheckpointError, match="did you mean align_corners"):
        load_model(tmp_path / "model", align_corner=True)


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def _config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return apply


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.pos_embed"][0, 1, 2] = float("nan")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: must be a file, got nothing"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: must be a file, got nothing"),
    "weights are a folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "must be a file, got a folder",
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "got 0 bytes"),
    "empty config": (lambda f: (f / "config.json").write_bytes(b""), "got 0 bytes"),
    "truncated weights": (_truncate, "must be a whole safetensors file"),
    "seven bytes": (lambda f: (f / "model.safetensors").write_bytes(b"\1" * 7), "must be a whole safetensors file"),
    "a huge header": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64),
        "must be a whole safetensors file",
    ),
    "a pickle": (lambda f: torch.save({}, f / "model.safetensors"), "must be a whole safetensors file"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "must be JSON"),
    "config is binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "must be JSON"),
    "config is nested": (lambda f: (f / "config.json").write_text("[" * 100_000), "must be JSON"),
    "config is large": (lambda f: (f / "config.json").write_bytes(b" " * (2 << 20)), "must be at most"),
    "config of something else": (lambda f: (f / "config.json").write_text('{"model_type": "x"}'), "must be the config"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "must be the config"),
    "another version": (_config(lambda c: c.update(version=99)), "format version must be 1, got 99"),
    "unknown field": (_config(lambda c: c["spec"].update(widht=3)), "widht; did you mean width"),
    "wrong type": (_config(lambda c: c["spec"].update(depth="two")), "depth: must be a whole number"),
    "absurd width": (_config(lambda c: c["spec"].update(width=10**9)), "width must lie in"),
    "more blocks": (_config(lambda c: c["spec"].update(depth=3)), "encoder.blocks.2.norm1.weight is missing"),
    "large width": (_config(lambda c: c["spec"].update(width=65536)), "must be [1, 1, 65536], got [1, 1, 16]"),
    "missing tensor": (_edit(lambda t: t.pop("head.classifier.bias")), "head.classifier.bias is missing"),
    "renamed tensor": (
        _edit(lambda t: t.update({"head.clasifier.bias": t.pop("head.classifier.bias")})),
        "head.classifier.bias is missing; did you mean head.clasifier.bias",
    ),
    "extra tensor": (_edit(lambda t: t.update(extra=torch.zeros(1))), "extra is not a tensor of this model"),
    "wrong shape": (
        _edit(lambda t: t.update({"head.classifier.bias": torch.zeros(4)})),
        "head.classifier.bias must be [3], got [4]",
    ),
    "integers for weights": (
        _edit(lambda t: t.update({"head.classifier.bias": torch.zeros(3, dtype=torch.int64)})),
        "head.classifier.bias must be floating point",
    ),
    "not a number": (_edit(_nan), "encoder.pos_embed must be finite, got 1 NaN"),
    "negative variances": (
        _edit(lambda t: [t[name].neg_() for name in t if name.endswith("running_var")]),
        "running_var must be 0 or more, got",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_folder_is_explained_in_one_line(case: str, tmp_path: Path) -> None:
    damage, message = HOSTILE[case]
    small().save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "model")
    text = str(caught.value)
    assert message in text
    assert str(tmp_path / "model") in text
    assert "\n" not in text
    assert len(text) < 1000


def test_a_missing_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a model folder"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "file.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="got a file"):
        load_model(tmp_path / "file.pth")
