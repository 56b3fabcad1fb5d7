"""``setr_fast.load``: any known checkpoint in, a model out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr_fast.checkpoints.accounting import Accounting, map_tensors
from setr_fast.checkpoints.adapters import is_adapter_folder, load_adapters
from setr_fast.checkpoints.configs import find_config
from setr_fast.checkpoints.families import FAMILIES, Family, Shapes
from setr_fast.checkpoints.fit_encoder import fit_encoder
from setr_fast.checkpoints.read import Source, read_checkpoint, weights_file
from setr_fast.checkpoints.resolve import resolve_spec
from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.models.catalog import model_spec
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.models.store import load_model

NATIVE = "native"
_ENCODER_FIELDS = ("width", "depth", "num_heads", "patch_size", "in_chans", "mlp_ratio", "qkv_bias", "patch_bias")


@dataclass
class Mapped:
    """A file of another code base in our terms."""

    family: Family
    spec: ModelSpec
    """Of the file's own model; head "none" where it holds an encoder only."""
    state: dict[str, Tensor]
    account: Accounting


def load(
    path: str | Path, family: str | None = None, base: str | Path | None = None, **overrides: Any
) -> SegmentationModel:
    """Read a model of any known family: eval mode, float32, CPU. The overrides are fields of ``ModelSpec``.

    ``base``: of a folder of adapters, the weights that they were trained on, if these have moved.

    Files that hold an encoder only give a model without a head, or with ``head`` and ``num_classes`` one whose head is
    fresh; the position table is resized to ``image_size`` then.

    Raises: CheckpointError for damaged or unfitting files, ConfigError for options that are missing or wrong.
    """
    if family not in (None, NATIVE, *FAMILIES):
        raise ConfigError(f"load: family must be {', '.join((*FAMILIES, NATIVE))}, got {family!r}")
    if is_adapter_folder(path) and family in (None, NATIVE):
        return load_adapters(path, base, **overrides)
    where = weights_file(Path(path))
    if family == NATIVE or (family is None and where.is_dir()):
        return load_model(where, **overrides)
    source = read_checkpoint(where)
    if source.kind == NATIVE:
        raise CheckpointError(f"{where}: must be a file of {family}, got a model folder of setr_fast; leave family out")
    mapped = map_source(source, family, **overrides)
    if mapped.spec.head == "none":
        return _with_encoder(mapped, overrides, str(where))
    return assemble(mapped.spec, mapped.state)


def map_source(source: Source, family: str | None = None, **overrides: Any) -> Mapped:
    """Bring the tensors of a file to our layout; ``source.tensors`` is emptied.

    For encoder-only files, overrides that speak of the model to be made (head, image_size, ...) are left out.
    """
    where = str(source.path)
    known = identify(source, family)
    tensors = known.prepare(source.tensors)
    source.tensors = {}
    found = known.find(Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, where))
    config = None
    if found.fields["head"] == "none":
        overrides = {name: value for name, value in overrides.items() if name in ("num_heads", "layer_norm_eps")}
    else:
        config = find_config(source)
    spec = resolve_spec(known, found, config, source.meta, overrides, where)
    with torch.device("meta"):
        wanted = SegmentationModel(spec).state_dict()
    state, account = map_tensors(known, known.rules(spec), tensors, wanted, where)
    account.dropped |= source.dropped
    return Mapped(known, spec, state, account)


def identify(source: Source, family: str | None = None) -> Family:
    """Tell the family from the keys.

    Raises: CheckpointError where none or several fit, or another one than the caller says.
    """
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in source.tensors.items()}, str(source.path))
    fitting = [known for known in FAMILIES.values() if known.detect(shapes)]
    if family is not None:
        if FAMILIES[family] in fitting:
            return FAMILIES[family]
        told = " or ".join(known.title for known in fitting) or f"keys such as {_some(shapes)}"
        raise CheckpointError(f"{source.path}: must be a file of {FAMILIES[family].title}, got {told}; correct family")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        told = ", ".join(known.name for known in fitting)
        raise CheckpointError(f"{source.path}: must be of one family, got keys of {told}; give family=")
    if "encoder.patch_embed.weight" in shapes:
        raise CheckpointError(
            f"{source.path}: must lie in a model folder, got the weights of a setr_fast model without their config.json"
            "; copy the whole folder"
        )
    raise CheckpointError(
        f"{source.path}: must be a checkpoint of {', '.join(k.title for k in FAMILIES.values())}, got keys such as "
        f"{_some(shapes)}; see docs/checkpoints.md"
    )


def assemble(spec: ModelSpec, state: dict[str, Tensor]) -> SegmentationModel:
    """Build a model around tensors that fit it, without a copy: eval mode."""
    with torch.device("meta"):
        model = SegmentationModel(spec)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _with_encoder(mapped: Mapped, overrides: dict[str, Any], where: str) -> SegmentationModel:
    """Return a model around an encoder: without a head, or with a fresh one where the caller names it."""
    # The family's mode; mmsegmentation's is another one for Segmenter.
    cubic = mapped.family.name == "mmseg" and overrides.get("head") in ("linear", "mask")
    mode = "bicubic" if cubic else mapped.spec.pos_resize
    spec = encoder_spec(mapped.spec, {"pos_resize": mode, **overrides}, where)
    state = fit_encoder(mapped.state, mapped.spec, spec, mapped.account, where)
    if spec.head == "none":
        return assemble(spec, state)
    model = SegmentationModel(spec)
    model.load_state_dict(model.state_dict() | state, assign=True)
    return model.eval()


def encoder_spec(old: ModelSpec, overrides: dict[str, Any], where: str) -> ModelSpec:
    """Return the spec of a model to be made around an encoder.

    Raises: ConfigError where ``head`` and ``num_classes`` do not come together.
    """
    head = overrides.get("head", "none")
    if (head != "none") != ("num_classes" in overrides):
        raise ConfigError(
            f"{where}: holds an encoder only, so head and num_classes must be given together, got "
            f"{'head' if head != 'none' else 'num_classes'} alone; give both for a model with a fresh head, or neither"
        )
    size = overrides.get("image_size", old.image_size)
    size = (size, size) if isinstance(size, int) else tuple(size)
    rest = {name: value for name, value in overrides.items() if name not in ("image_size", "num_classes", "head")}
    if head == "none":
        grid = tuple(-(-side // old.patch_size) for side in size)
        return old.replace(**{"image_size": size, "pos_grid": grid, **rest})
    setr = head not in ("linear", "mask")
    sizes = {name: getattr(old, name) for name in _ENCODER_FIELDS}
    if not setr:
        sizes |= {"distilled": old.distilled, "mean": old.mean, "std": old.std}
    name = f"{'setr' if setr else 'segmenter'}_{head}_vit_b16"
    return model_spec(name, overrides["num_classes"], size, **{**sizes, **rest}).replace(
        name=f"{name.rpartition('_vit')[0]}"
    )


def _some(shapes: Shapes) -> str:
    return ", ".join(list(shapes)[:3]) or "none"
