"""Recorded models of other code bases, read as users read them: ``setr_fast.load`` with the contract's overrides."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import setr_fast
from setr_fast.checkpoints.load import Mapped, map_source
from setr_fast.checkpoints.read import read_checkpoint
from setr_fast.models.model import SegmentationModel

CONTRACT = ("num_heads", "decoder_num_heads", "taps", "image_size", "align_corners", "layer_norm_eps")


@dataclass(frozen=True)
class Recorded:
    """One recorded model: its description, its arrays, and how its file is read."""

    folder: Path
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @functools.cached_property
    def overrides(self) -> dict[str, Any]:
        """What the description says of the fields that the contract names."""
        found = _READERS[self.config["family"]](self.config)
        found = {name: value for name, value in found.items() if value not in (None, ())}
        assert found.keys() <= set(CONTRACT)
        return found

    @functools.cached_property
    def mapped(self) -> Mapped:
        """The file in our terms, with the account of its keys."""
        return map_source(read_checkpoint(self.folder / self.config["weights"]), **self.overrides)

    def model(self, **changes: Any) -> SegmentationModel:
        return setr_fast.load(self.folder / self.config["weights"], **(self.overrides | changes))

    def target(self, key: str) -> str | None:
        """Return our name of a key of the peer, or None where nothing uses it; KeyError where it is unknown."""
        account = self.mapped.account
        for name in (key, f"head.{key}"):  # Paddle lists a shared layer under the name of its first owner
            for target, sources in account.used.items():
                if name in sources:
                    return target
            if name in account.dropped:
                return None
        raise KeyError(key)

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def tolerance(self, name: str, case: str = "case0") -> float:
        """Ten times the peer's own rounding error, at most 1e-4."""
        return min(10 * self.config["f32_minus_f64_max_abs"][case][name], 1e-4)

    def check(self, got: Tensor, name: str) -> None:
        want = self.tensor(name)
        assert got.shape == want.shape, name
        error = (got - want).abs().max().item()
        assert error <= self.tolerance(name), f"{name}: error {error:.2e}, allowed {self.tolerance(name):.2e}"


@functools.cache
def read_recorded(folder: Path) -> Recorded:
    config = json.loads((folder / "config.json").read_text())
    with np.load(folder / config.get("data", "data.npz"), allow_pickle=False) as data:
        return Recorded(folder, config, {name: data[name] for name in data.files})


def _official(config: dict[str, Any]) -> dict[str, Any]:
    backbone = config["model"]["backbone"]
    return {
        "num_heads": backbone["num_heads"],
        "taps": tuple(config["taps"]),
        "image_size": backbone["img_size"],
        "layer_norm_eps": config["layer_norm_eps"],
    }


def _mmseg(config: dict[str, Any]) -> dict[str, Any]:
    backbone, head = config["model"]["backbone"], config["model"]["decode_head"]
    return {
        "num_heads": backbone["num_heads"],
        "decoder_num_heads": head.get("num_heads"),
        "taps": tuple(backbone.get("out_indices", ())),
        "image_size": tuple(backbone["img_size"]),
        "layer_norm_eps": backbone["norm_cfg"]["eps"],
    }


def _segmenter(config: dict[str, Any]) -> dict[str, Any]:
    net = config["net_kwargs"]
    return {
        "num_heads": net["n_heads"],
        "decoder_num_heads": config.get("decoder_heads"),
        "image_size": tuple(net["image_size"]),
        "layer_norm_eps": config.get("layer_norm_eps"),
    }


def _paddleseg(config: dict[str, Any]) -> dict[str, Any]:
    args = config["args"]
    return {
        "num_heads": args["heads"],
        "decoder_num_heads": args.get("h_heads"),
        "taps": tuple(args.get("backbone_indices", ())),
        "image_size": args["img_size"],
        "layer_norm_eps": config.get("backbone", {}).get("epsilon"),
    } | ({"align_corners": config["model"]["align_corners"]} if "align_corners" in config.get("model", {}) else {})


def _paddlevit(config: dict[str, Any]) -> dict[str, Any]:
    model = config.get("model", {}).get("MODEL", {})
    return {
        "num_heads": config.get("heads") or model["TRANS"]["NUM_HEADS"],
        "taps": tuple(config["taps"]),
        "image_size": config.get("img_size") or tuple(config["model"]["DATA"]["CROP_SIZE"]),
        "layer_norm_eps": config["layer_norm_eps"],
    }


_READERS = {
    "setr-official": _official,
    "mmseg": _mmseg,
    "segmenter": _segmenter,
    "paddleseg": _paddleseg,
    "paddlevit": _paddlevit,
}
