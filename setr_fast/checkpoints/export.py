"""Models written as the files of other code bases: tensors by the inverse rules, their config beside them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr_fast.checkpoints.configs import ForeignConfig
from setr_fast.checkpoints.families import FAMILIES, Shapes
from setr_fast.checkpoints.peer_config import config_text, peer_config
from setr_fast.checkpoints.peer_layout import to_layout
from setr_fast.checkpoints.peer_limits import limits
from setr_fast.checkpoints.resolve import resolve_spec
from setr_fast.checkpoints.rules import export_tensors
from setr_fast.errors import ConfigError
from setr_fast.files import atomic_file, atomic_write
from setr_fast.models.spec import ModelSpec

# Fields without influence on the logits of a picture of the training size. The code bases settle them elsewhere
# (pipelines, losses) or not at all; what differs is noted in the certificate.
_ELSEWHERE = {
    *("name", "class_names", "palette", "mean", "std", "stride", "inference_mode", "image_size", "resize_short"),
    *("min_short", "resize_rule", "window_rule", "merge"),
    *("dropout", "drop_path", "drop_path_on", "decoder_dropout", "decoder_drop_path", "loss_averaging", "ignore_index"),
    *("aux_weight", "pos_resize", "pos_resize_when", "fit", "resize_to", "cosine_eps"),
}
_SPEAKING = {"mean", "std", "pos_resize", "pos_resize_when", "fit", "resize_to", "loss_averaging", "cosine_eps"}
# Epsilons (and the like) that only these heads have.
_SETR_ONLY = {"head_channels", "head_kernel", "head_scales", "head_align_corners", "head_norm_eps", "conv_bias"}
_SETR_ONLY |= {"classifier_kernel", "branch_channels", "branch_scale", "deep_first", "batch_norm_eps"}
_AUX_ONLY = {"aux_levels", "aux_channels", "aux_kernel", "aux_scales", "aux_bias", "shared_modules"}
_UP_ONLY = {"head_kernel", "head_scales", "aux_channels", "aux_kernel", "aux_scales"}
_MLA_ONLY = {"classifier_kernel", "branch_channels", "branch_scale", "deep_first", "aux_bias"}


@dataclass
class Exported:
    """A model in a code base's terms."""

    family: str
    spec: ModelSpec
    """What the code base makes of the file."""
    state: dict[str, Tensor]
    """Our tensors, as they are when the file is read back."""
    tensors: dict[str, Tensor]
    """The file's tensors."""
    config: ForeignConfig
    changed: dict[str, str]
    """What was rewritten without changing the function."""
    differences: dict[str, str]
    """Fields that the code base has otherwise, without influence on logits at the training size."""
    dead: tuple[str, ...]
    """Keys that only strict loading wants; they hold zeros."""
    limits: list[str]
    """Why the code base's own code cannot build the model; empty where it can."""


def export(family: str, spec: ModelSpec, state: dict[str, Tensor]) -> Exported:
    """Return a model as the code base holds it.

    Raises: ConfigError where the code base cannot build this model.
    """
    layout, tensors_of, changed = to_layout(family, spec, state)
    known = FAMILIES[family]
    tensors = export_tensors(known.rules(layout), tensors_of)
    dead = {name: torch.zeros(shape) for name, shape in known.dead(layout).items()}
    form, values = peer_config(family, layout)
    config = ForeignConfig(form, values, Path(family))
    read = _read_back(family, layout, tensors | dead, config)
    wrong = [name for name in _relevant(layout) if getattr(read, name) != getattr(layout, name)]
    if wrong:
        told = "; ".join(f"{name} is {getattr(read, name)} there, {getattr(layout, name)} here" for name in wrong)
        raise ConfigError(f"convert: {family} computes another function: {told}; write it as native")
    differences = {
        name: f"{getattr(read, name)} there, {getattr(layout, name)} here"
        for name in sorted(_SPEAKING)
        if getattr(read, name) != getattr(layout, name)
    }
    return Exported(
        family, read, tensors_of, tensors | dead, config, changed, differences, tuple(dead), limits(family, read)
    )


def write_export(made: Exported, path: Path) -> dict[str, str]:
    """Write the weights to ``path`` and the config beside it; return the files' names by what they hold."""
    spec = made.spec
    if made.config.form == "segmenter":
        config = path.with_name("variant.yml")
        content: dict[str, Any] = {"model": made.tensors, "n_cls": spec.num_classes, "epoch": 0}
    else:
        config = path.with_suffix(".py" if made.config.form == "mmseg" else ".yml")
        meta: dict[str, Any] = {"config": config_text(made.config.form, made.config.values)}
        if spec.class_names is not None:
            meta["CLASSES"] = spec.class_names
        if spec.palette is not None:
            meta["PALETTE"] = [list(colour) for colour in spec.palette]
        content = {"meta": meta, "state_dict": made.tensors}
    if config == path:
        raise ConfigError(f"convert: DST must not end in {path.suffix}, got {path}; the config is written there")
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        if made.family == "paddleseg":
            pickle.dump({name: tensor.numpy() for name, tensor in made.tensors.items()}, file, protocol=4)
        else:
            torch.save(content, file)
    atomic_write(config, config_text(made.config.form, made.config.values))
    return {"weights": path.name, "config": config.name}


def _read_back(family: str, spec: ModelSpec, tensors: dict[str, Tensor], config: ForeignConfig) -> ModelSpec:
    """Return what our reader, and so the code base, makes of the tensors and the config."""
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, f"convert to {family}")
    known = FAMILIES[family]
    meta = {"CLASSES": spec.class_names, "PALETTE": spec.palette}
    try:
        return resolve_spec(known, known.find(shapes), config, meta, {}, shapes.where)
    except ConfigError as error:
        raise ConfigError(f"convert: {family} has no such model ({error}); write it as native") from None


def _relevant(spec: ModelSpec) -> list[str]:
    """Fields that a head's logits depend on."""
    unused = set(_ELSEWHERE)
    if spec.head in ("linear", "mask"):
        unused |= _SETR_ONLY | _AUX_ONLY
    else:
        unused |= _UP_ONLY if spec.head == "mla" else _MLA_ONLY
        unused |= set() if spec.aux_levels else _AUX_ONLY
        unused |= {"final_norm_eps"}
        if spec.head != "mla" and {*spec.head_scales, *spec.aux_scales} == {1}:  # nothing is resized inside
            unused |= {"head_align_corners"}
    if spec.head != "mask":
        unused |= {name for name in spec.to_dict() if name.startswith("decoder_")}
    return [name for name in spec.to_dict() if name not in unused]
