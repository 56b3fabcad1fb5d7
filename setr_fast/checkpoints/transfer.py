"""Weights for a model with other classes, or around an encoder only: what fits is taken, the rest starts fresh.

Nothing is replaced silently: other classes need ``reinit_head``, and every fresh tensor is named.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from setr_fast.checkpoints.accounting import Accounting
from setr_fast.checkpoints.channels import extend_channels
from setr_fast.checkpoints.families import Shapes
from setr_fast.checkpoints.fit_encoder import fit_encoder
from setr_fast.checkpoints.load import identify, map_source
from setr_fast.checkpoints.read import Source, read_checkpoint, weights_file
from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.models.model import AUX_HEADS, HEADS, SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.models.store import load_model
from setr_fast.nn.lora import PARTS, merged

_LOG = logging.getLogger(__name__)


def class_axes(spec: ModelSpec) -> dict[str, int]:
    """Return the tensors that have one entry per class, and the axis: found by building the head for one class more."""
    few, more = (_head_shapes(spec.replace(num_classes=n, class_names=None, palette=None)) for n in (2, 3))
    axes = {}
    for name, shape in few.items():
        differing = [axis for axis, (a, b) in enumerate(zip(shape, more[name], strict=True)) if a != b]
        if differing:
            axes[name] = differing[0]
    return axes


def reinit_classes(
    spec: ModelSpec,
    state: dict[str, Tensor],
    num_classes: int,
    class_names: Sequence[str] | None = None,
    match_names: bool = False,
) -> tuple[ModelSpec, dict[str, Tensor], dict[str, Any]]:
    """Return a model's spec and tensors for other classes, and what was done.

    The tensors with an entry per class start fresh; with ``match_names`` the entries of classes that both have are
    kept (names compared without regard to case and surrounding space).

    Raises: ConfigError for names that are missing, repeated, or not as many as the classes.
    """
    if class_names is not None and len(class_names) != num_classes:
        raise ConfigError(f"class_names must be {num_classes} names, got {len(class_names)}")
    pairs: list[tuple[int, int]] = []
    if match_names:
        if class_names is None or spec.class_names is None:
            whose = "new classes" if class_names is None else "classes of the file"
            raise ConfigError(f"match_classes: the {whose} must have names, got none; give them or leave it out")
        pairs = _matches(spec.class_names, class_names)
    palette = spec.palette if class_names is not None and tuple(class_names) == spec.class_names else None
    new = spec.replace(
        num_classes=num_classes, class_names=None if class_names is None else tuple(class_names), palette=palette
    )
    axes = class_axes(spec)
    fresh = fresh_heads(new)
    result = dict(state)
    for name, axis in axes.items():
        tensor = fresh[name]
        for theirs, ours in pairs:
            tensor.select(axis, ours).copy_(state[name].select(axis, theirs))
        result[name] = tensor
    kept = {str(class_names[ours]): theirs for theirs, ours in pairs} if class_names is not None else {}
    return (
        new,
        result,
        {"from_classes": spec.num_classes, "to_classes": num_classes, "fresh": sorted(axes), "kept": kept},
    )


def start_from(
    model: SegmentationModel,
    path: Path,
    reinit_head: bool = False,
    extra_channels: Literal["zero", "mean"] = "zero",
    tell: bool = True,
) -> dict[str, Any]:
    """Fill a model for training from any known file; return, and with ``tell`` log, what was taken, dropped and fresh.

    A file of an encoder fills the encoder (its position table resized to the model's pictures). A file of a whole
    model must fit in every tensor; with ``reinit_head`` the heads may differ, and start fresh where they do. A model of
    more than three channels takes the kernels of the further ones by the rule ``extra_channels``.

    Raises: CheckpointError or ConfigError naming what does not fit.
    """
    where = weights_file(Path(path))
    if where.is_dir():
        saved = load_model(where)
        old, state = saved.spec, dict(saved.state_dict())
        account = Accounting(used={name: (name,) for name in state})
    else:
        source = read_checkpoint(where)
        mapped = map_source(source, **_unsaid(source, model.spec))
        old, state, account = mapped.spec, mapped.state, mapped.account
    state, old = extend_channels(state, old, model.spec, account, extra_channels)
    old, state = without_adapters(old, state, account)
    own = model.state_dict()
    try:
        encoder = fit_encoder(state, old, model.spec, account, str(where))
    except ConfigError as error:
        raise CheckpointError(f"{path}: does not fit this model: {error}") from None
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
    taken = dict(encoder)
    if old.head != "none":
        asked = [name for name in own if name not in encoder and not name.endswith(PARTS)]
        wrong = [name for name in asked if not _fits(rest.get(name), own[name])]
        wrong += [name for name in rest if name not in own]
        if wrong and not reinit_head:
            told = f"{old.num_classes} classes, head {old.head} (model: {model.spec.num_classes}, {model.spec.head})"
            raise CheckpointError(
                f"{path}: does not fit this model in {len(wrong)} tensors, first {wrong[0]}: it has {told}; "
                "set reinit_head to start the heads afresh where they differ"
            )
        taken |= {name: tensor for name, tensor in rest.items() if _fits(tensor, own.get(name))}
        for name in rest:
            if name not in taken:
                account.drop_target(name, "the model has other heads or classes")
    model.load_state_dict(own | taken)
    fresh = [name for name in own if name not in taken]
    if tell:
        _tell(path, account, fresh)
    return {**account.to_dict(), "fresh": fresh}


def without_adapters(
    spec: ModelSpec, state: dict[str, Tensor], account: Accounting
) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Return a model with its adapters, where it has any, added to the weights; the account says to which."""
    if not spec.lora_rank:
        return spec, state
    for name in [name for name in state if name.endswith(PARTS[0])]:
        layer = name.removesuffix(PARTS[0])
        parts = [account.used.pop(layer + part, ()) for part in PARTS]
        account.used[layer + "weight"] = (*account.used.get(layer + "weight", ()), *parts[0], *parts[1])
        account.changed[layer + "weight"] = "its adapter added"
    plain = {field.name: field.default for field in fields(ModelSpec) if field.name.startswith("lora_")}
    return spec.replace(**plain), merged(state, spec.lora_alpha / spec.lora_rank)


def _tell(path: Path, account: Accounting, fresh: list[str]) -> None:
    reasons: dict[str, list[str]] = {}
    for name, reason in account.dropped.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        _LOG.info("%s: %d keys dropped, %s%s: %s", path, len(names), names[0], ", ..." * (len(names) > 1), reason)
    for name, what in account.changed.items():
        _LOG.info("%s: %s %s", path, name, what)
    if fresh:
        _LOG.info("%s: %d tensors start fresh, %s%s", path, len(fresh), fresh[0], ", ..." * (len(fresh) > 1))


def _unsaid(source: Source, new: ModelSpec) -> dict[str, Any]:
    """What the weights of a file do not say, as far as the model that they are for says it.

    Settings of a head that is not taken over decide nothing, but reading asks for them.
    """
    family = identify(source)
    tensors = family.prepare(source.tensors)
    found = family.find(Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, str(source.path)))
    head, depth = found.fields["head"], found.fields["depth"]
    given: dict[str, Any] = {"num_heads": new.num_heads}
    if head in ("naive", "pup", "mla"):
        fits = head == new.head and new.taps[-1] < depth
        given["taps"] = new.taps if fits else tuple(range(depth))[-max(found.levels, 1) :]
    if head == "mask":
        given["decoder_num_heads"] = new.decoder_num_heads if head == new.head else 1
    if found.rows == new.pos_grid[0] * new.pos_grid[1]:
        given["image_size"] = (new.pos_grid[0] * new.patch_size, new.pos_grid[1] * new.patch_size)
    return given


def _fits(tensor: Tensor | None, own: Tensor | None) -> bool:
    return tensor is not None and own is not None and tensor.shape == own.shape


def _matches(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    before, after = ([name.strip().casefold() for name in names] for names in (old, new))
    for names in (before, after):
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(f"match_classes: class names must differ, got {repeated[0]!r} more than once")
    pairs = [(before.index(name), index) for index, name in enumerate(after) if name in before]
    if not pairs:
        raise ConfigError(f"match_classes: a class must be in both lists, got none; the file has {', '.join(old[:5])}")
    return pairs


def _head_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in fresh_heads(spec).items()}


def fresh_heads(spec: ModelSpec) -> dict[str, Tensor]:
    """Return freshly drawn tensors of the main and the auxiliary heads."""
    state = {f"head.{name}": tensor for name, tensor in HEADS[spec.head](spec).state_dict().items()}
    distinct = min(len(spec.aux_levels), 1) if spec.shared_modules else len(spec.aux_levels)
    for index in range(distinct):
        head = AUX_HEADS[spec.head](spec).state_dict()
        state |= {f"aux_heads.{index}.{name}": tensor for name, tensor in head.items()}
    return state
