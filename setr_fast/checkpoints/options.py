"""Options of conversion. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setr_fast.errors import ConfigError


@dataclass(frozen=True)
class ConvertConfig:
    """What to write, and what the weights do not say."""

    to: str = "native"
    """native, mmseg, official, segmenter, paddleseg; adapters: what a model with adapters learned, without its base."""
    family: str | None = None
    """Code base of the file; none: told by its keys."""
    recorded: Path | None = None
    """.npz of a forward by the file's own code (input, logits, logits_low, auxN_logits_low) to compare with."""
    num_heads: int | None = None
    """Attention heads of the encoder."""
    decoder_num_heads: int | None = None
    """Attention heads of the mask decoder."""
    taps: tuple[int, ...] | None = None
    """Blocks, from 0, whose output the heads read, shallow to deep."""
    image_size: tuple[int, ...] | None = None
    """Picture of the position table: one side, or height and width, in pixels."""
    align_corners: bool | None = None
    """The last resize puts corners on corners."""
    layer_norm_eps: float | None = None
    """Epsilon of the encoder's LayerNorms."""
    set: tuple[str, ...] = ()
    """Any other fields of the model, as name=value; the value in JSON, or text."""
    num_classes: int | None = None
    """Classes of the result; other than the file's only with --reinit-head."""
    reinit_head: bool = False
    """Give the model new classes: every tensor with an entry per class starts fresh."""
    class_names: tuple[str, ...] | None = None
    """Names of the result's classes."""
    match_classes: bool = False
    """With --reinit-head: keep the entries of classes that have the same name in the file."""
    merge_lora: bool = False
    """Add low-rank adapters to the weights; files for other code bases have them added in any case."""

    base: Path | None = None
    """Weights that adapters were trained on: noted with --to adapters, needed to read such a folder if they moved."""

    def overrides(self) -> dict[str, Any]:
        """Return what the user says of the model in the file, as ``load`` takes it.

        Raises: ConfigError for a setting that is no name=value.
        """
        names = ("num_heads", "decoder_num_heads", "taps", "align_corners", "layer_norm_eps")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.image_size is not None:
            if len(self.image_size) not in (1, 2):
                raise ConfigError(f"convert: --image-size must be one or two numbers, got {len(self.image_size)}")
            given["image_size"] = self.image_size[0] if len(self.image_size) == 1 else tuple(self.image_size)
        if self.num_classes is not None and not self.reinit_head:
            given["num_classes"] = self.num_classes
        for setting in self.set:
            name, equals, text = setting.partition("=")
            if not equals or not name:
                raise ConfigError(f"convert: --set must be name=value, got {setting!r}")
            try:
                given[name] = json.loads(text)
            except ValueError:
                given[name] = text
        return given
