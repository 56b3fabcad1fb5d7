"""Configs of other code bases, read as plain values."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from setr_fast.checkpoints.configs import find_config, read_config
from setr_fast.checkpoints.read import Source, read_checkpoint
from setr_fast.errors import CheckpointError

MODEL = "model = dict(backbone=dict(num_heads=3), decode_head=dict(num_classes=7))\n"


def _source(tmp_path: Path, **meta: Any) -> Source:
    return Source(tmp_path / "model.pth", "torch", {}, "state_dict", frozenset(), meta)


def test_a_python_config_with_its_bases(tmp_path: Path) -> None:
    base = tmp_path / "_base_"
    base.mkdir()
    (base / "model.py").write_text(
        "norm_cfg = dict(type='SyncBN', requires_grad=True)\ncrop = (768, 768)\n"
        "model = dict(pretrained='x',\n"
        "    backbone=dict(type='VisionTransformer', img_size=crop, out_indices=(9, 14, 19, 23), drop_rate=0.1),\n"
        "    decode_head=dict(norm_cfg=norm_cfg, num_classes=19, channels=2 * 128),\n"
        "    auxiliary_head=[dict(in_index=i_) for i_ in range(3)], neck=dict(a=1, b=2))\n"
    )
    (base / "runtime.py").write_text("import os\nlog_level = 'INFO'\nos.system('exit 1')\n")
    (tmp_path / "model.py").write_text(
        "_base_ = ['./_base_/model.py', './_base_/runtime.py']\n"
        "norm_cfg = dict(type='BN')\n"
        "model = dict(pretrained=None, backbone={'drop_rate': 0.0, 'mean': [-1, *[2]][:1]},\n"
        "    decode_head=dict(norm_cfg=norm_cfg, init=make(3), names=['a'] * 2 + ['b']),\n"
        "    neck=dict(_delete_=True, c=3), size={{_base_.crop}}, side=_base_.crop[0])\n"
    )
    found = find_config(_source(tmp_path))
    assert found is not None
    assert (found.form, found.path) == ("mmseg", tmp_path / "model.py")
    assert found.values == {
        "log_level": "INFO",
        "crop": (768, 768),
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "model": {
            "pretrained": None,
            "backbone": {
                "type": "VisionTransformer",
                "img_size": (768, 768),
                "out_indices": (9, 14, 19, 23),
                "drop_rate": 0.0,
            },
            "decode_head": {
                "norm_cfg": {"type": "BN", "requires_grad": True},
                "num_classes": 19,
                "channels": 256,
                "names": ["a", "a", "b"],
            },
            "neck": {"c": 3},
            "size": (768, 768),
            "side": 768,
        },
    }


def test_nothing_of_a_python_config_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    (tmp_path / "model.py").write_text(
        f"open({str(trace)!r}, 'w')\nx = open({str(trace)!r}, 'w')\ny = [open({str(trace)!r}, 'w') for _ in '1']\n"
        f"class A:\n    open({str(trace)!r}, 'w')\npower = 9 ** 9 ** 9\n" + MODEL
    )
    found = find_config(_source(tmp_path))
    assert found is not None
    assert found.values == {"model": {"backbone": {"num_heads": 3}, "decode_head": {"num_classes": 7}}}
    assert not trace.exists()


@pytest.mark.parametrize(
    "text",
    ["a = (" * 500, "a = " + "-" * 50_000 + "1", "a = " + "[" * 150 + "]" * 150, "a = 'x\n", "a\0b", "x = 1" * 9],
)
def test_hopeless_python_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.py").write_text(text + "\n" + MODEL)
    message, form = "", "mmseg"
    try:
        found = read_config(tmp_path / "model.py")
        form = found.form if found else ""
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message
    assert form == "mmseg"


def test_products_without_bound_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("big = [[1] * 9999] * 9999\n" + MODEL)
    with pytest.raises(CheckpointError, match="must hold at most 100000 values"):
        read_config(tmp_path / "model.py")
    rows = ["a0 = dict(x=1)"] + [f"a{i} = dict(x=a{i - 1}, y=a{i - 1})" for i in range(1, 60)]
    (tmp_path / "model.py").write_text("\n".join(rows) + "\n" + MODEL)
    with pytest.raises(CheckpointError, match="must hold at most 100000 values"):
        read_config(tmp_path / "model.py")


def test_a_missing_base_is_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "model.py").write_text("_base_ = '../models/setr.py'\n" + MODEL)
    with caplog.at_level(logging.WARNING):
        assert find_config(_source(tmp_path)) is not None
    assert "inherits from ../models/setr.py, which is not there" in caplog.text


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("_base_ = 'other.py'\n" + MODEL)
    (tmp_path / "other.py").write_text("_base_ = 'model.py'\n")
    with pytest.raises(CheckpointError, match="must not inherit from itself"):
        find_config(_source(tmp_path))


def test_variant_yml_with_tuples_and_aliases(tmp_path: Path) -> None:
    (tmp_path / "variant.yml").write_text(
        "dataset_kwargs: {normalization: vit}\nnet_kwargs:\n  image_size: &id001 !!python/tuple\n  - 512\n  - 512\n"
        "  n_heads: 12\n  distilled: false\n  decoder: {size: *id001, name: mask_transformer}\n"
    )
    found = find_config(_source(tmp_path, config=MODEL))
    assert found is not None
    assert found.form == "segmenter"
    assert found.values["net_kwargs"]["image_size"] == (512, 512)
    assert found.values["net_kwargs"]["decoder"] == {"size": (512, 512), "name": "mask_transformer"}


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "!!python/object/new:os.x []"]
)
def test_yaml_that_makes_objects_is_refused(tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "variant.yml").write_text(f"net_kwargs:\n  a: {tag}\n")
    with pytest.raises(CheckpointError, match="must be plain YAML"):
        find_config(_source(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_yaml_that_grows_without_bound_is_refused(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    (tmp_path / "variant.yml").write_text("\n".join(rows) + "\nnet_kwargs: {a: 1}\n")
    with pytest.raises(CheckpointError, match="must hold at most 100000 values"):
        find_config(_source(tmp_path))
    rows = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60)]
    (tmp_path / "variant.yml").write_text("\n".join(rows) + "\nnet_kwargs: {a: 1}\n")
    with pytest.raises(CheckpointError, match="a merge key"):
        find_config(_source(tmp_path))
    (tmp_path / "variant.yml").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="must be plain YAML"):
        find_config(_source(tmp_path))


def test_paddle_yaml_inherits(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("train: {a: 1}\nmodel: {type: S, backbone: {type: V}, lists: [1, 2]}\n")
    (tmp_path / "model.yml").write_text(
        "_base_: base.yml\nmodel: {num_classes: 7, backbone_indices: [1, 3], lists: [3]}\n"
        "train: {_inherited_: false, b: 2}\n"
    )
    found = find_config(_source(tmp_path))
    assert found is not None
    assert found.form == "paddle"
    assert found.values == {
        "train": {"b": 2},
        "model": {"type": "S", "backbone": {"type": "V"}, "lists": [3], "num_classes": 7, "backbone_indices": [1, 3]},
    }
    (tmp_path / "model.yml").write_text("BASE: ['']\nMODEL: {TRANS: {NUM_HEADS: 3}}\nDATA: {CROP_SIZE: [64, 64]}\n")
    found = find_config(_source(tmp_path))
    assert found is not None
    assert found.values == {"MODEL": {"TRANS": {"NUM_HEADS": 3}}, "DATA": {"CROP_SIZE": [64, 64]}}


def test_the_text_inside_the_file_is_a_config(shared: Path, tmp_path: Path) -> None:
    source = read_checkpoint(shared / "fixtures/parity/setr-official-mla/model.pth")
    source.path = tmp_path / "model.pth"
    found = find_config(source)
    assert found is not None
    assert (found.form, found.path) == ("mmseg", source.path)
    assert found.values["model"]["backbone"]["mla_index"] == (1, 3, 5, 7)


def test_which_config_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = _source(tmp_path, cfg=MODEL.replace("3", "5"))

    def heads() -> Any:
        found = find_config(source)
        return found and (found.path.name, found.values["model"]["backbone"]["num_heads"])

    (tmp_path / "setup.py").write_text("x = 1\n")
    (tmp_path / "some_config.py").write_text(MODEL)
    assert heads() == ("model.pth", 5)
    source.meta.clear()
    assert heads() == ("some_config.py", 3)
    (tmp_path / "config.json").write_text(
        '{"model": {"backbone": {"num_heads": 9}, "decode_head": {}}, "family": "mmseg"}'
    )
    assert heads() == ("config.json", 9)
    (tmp_path / "config.json").write_text('{"hidden_size": 9}')
    (tmp_path / "another.py").write_text(MODEL)
    with caplog.at_level(logging.WARNING):
        assert heads() is None
    assert "several configs (another.py, some_config.py)" in caplog.text
    (tmp_path / "model.py").write_text(MODEL.replace("3", "4"))
    assert heads() == ("model.py", 4)


def test_a_config_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    for name, content in (("config.json", b"{"), ("model.py", b"\xff\xfe"), ("variant.yml", b"a: [")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            find_config(_source(tmp_path))
        assert "\n" not in str(caught.value)
        path.unlink()


def test_configs_that_inherit_twice_over_and_over_end(tmp_path: Path) -> None:
    for number in range(31):
        following = f"c{number + 1}.yml"
        (tmp_path / f"c{number}.yml").write_text(f"_base_: [{following}, {following}]\nMODEL: {{}}\n")
    (tmp_path / "c31.yml").write_text("MODEL: {}\n")
    with pytest.raises(CheckpointError, match="must inherit from fewer than 32 files, got more"):
        read_config(tmp_path / "c0.yml")


def test_keys_that_take_for_ever_to_hash_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 !!python/tuple [x]"]
    lines += [f"a{i}: &a{i} !!python/tuple [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    (tmp_path / "variant.yml").write_text("\n".join([*lines, "net_kwargs: {? *a59 : 1}"]))
    with pytest.raises(CheckpointError, match="a key that is no plain value"):
        read_config(tmp_path / "variant.yml")


def test_a_mark_that_editors_leave_at_the_start_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("model = dict(backbone=dict(), decode_head=dict())", encoding="utf-8-sig")
    found = read_config(tmp_path / "c.py")
    assert found is not None
    assert found.form == "mmseg"
