"""``setr-fast convert``: any known checkpoint into our folder or another code base's file, with a certificate."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from setr_fast.checkpoints.accounting import Accounting
from setr_fast.checkpoints.adapters import ADAPTERS, is_adapter_folder, load_adapters, save_adapters
from setr_fast.checkpoints.certificate import NAME, certificate, certificate_text, compare_forward
from setr_fast.checkpoints.export import export, write_export
from setr_fast.checkpoints.families import FAMILIES
from setr_fast.checkpoints.fit_encoder import fit_encoder
from setr_fast.checkpoints.load import NATIVE, assemble, encoder_spec, map_source
from setr_fast.checkpoints.options import ConvertConfig
from setr_fast.checkpoints.peer_layout import TARGETS
from setr_fast.checkpoints.read import read_checkpoint, weights_file
from setr_fast.checkpoints.transfer import fresh_heads, reinit_classes, without_adapters
from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.fields import nearest
from setr_fast.files import atomic_write
from setr_fast.models.spec import ModelSpec
from setr_fast.models.store import ADAPTER_FILE, WEIGHTS_FILE, load_model, save_model

OFFICIAL = {"official": "setr"}
"""Other names of targets."""
_LOG = logging.getLogger(__name__)


@dataclass
class _Read:
    spec: ModelSpec
    state: dict[str, Tensor]
    account: Accounting
    family: str
    extra: dict[str, Any]


def convert(source: Path, result: Path, config: ConvertConfig) -> dict[str, Any]:
    """Convert a checkpoint, write the certificate beside the result, and return it.

    Raises: ConfigError for options that do not fit, CheckpointError for files that do not.
    """
    target = OFFICIAL.get(config.to, config.to)
    if target not in (NATIVE, ADAPTERS, *TARGETS):
        known = (NATIVE, ADAPTERS, "official", *(name for name in TARGETS if name != "setr"))
        raise ConfigError(f"convert: --to must be {', '.join(known)}, got {config.to}{nearest(config.to, known)}")
    if config.base is not None and target != ADAPTERS and not is_adapter_folder(source):
        raise ConfigError("convert: --base must come with adapters, in SRC or by --to adapters, got neither")
    source = source / ADAPTER_FILE if is_adapter_folder(source) else weights_file(source)
    if result.exists() and source.exists() and result.resolve() == source.resolve():
        raise ConfigError(f"convert: DST must be another place than SRC, got {result} for both")
    if target not in (NATIVE, ADAPTERS) and result.is_dir():
        raise ConfigError(
            f"convert: DST must be a file for --to {config.to}, got the folder {result}; name a file in it"
        )
    read = _reinitialised(_read(source, config.family, config.overrides(), config.base), config)
    if target not in (NATIVE, ADAPTERS) or config.merge_lora:
        read.spec, read.state = without_adapters(read.spec, read.state, read.account)
    model = assemble(read.spec, dict(read.state))
    forward = compare_forward(model, config.recorded) if config.recorded is not None else None
    values: dict[str, Any]
    if target == NATIVE:
        save_model(model, result)
        weights, beside = result / WEIGHTS_FILE, result / NAME
    elif target == ADAPTERS:
        weights, beside = save_adapters(model, result, config.base), result / NAME
    else:
        made = export(target, read.spec, read.state)
        written = write_export(made, result)
        _verify(result, target, made.state, made.spec)
        read.extra |= {
            "written": written,
            "rewritten": made.changed,
            "differences": made.differences,
            "dead_keys": list(made.dead),
            "limits": made.limits,
            "read_back": "equal to the bit",
        }
        for name, told in made.differences.items():
            _LOG.warning("%s has another %s: %s", target, name, told)
        if made.limits:
            _LOG.warning("%s: its own code cannot build this model: %s", target, "; ".join(made.limits))
        weights, beside = result, result.with_name(result.name + "." + NAME)
    values = certificate(
        source, weights, read.account, model, family=read.family, target=target, extra=read.extra, forward=forward
    )
    atomic_write(beside, certificate_text(values))
    return values | {"certificate": str(beside)}


def convert_command(source: Path, result: Path, config: ConvertConfig) -> None:
    """Convert, and print what was used, dropped and checked."""
    values = convert(source, result, config)
    keys = values["keys"]
    print(
        f"{values['source']['family']} -> {values['result']['family']}: {values['spec']['head']}, "
        f"{values['spec']['num_classes']} classes, {values['parameters']:,} parameters"
    )
    print(f"keys: {keys['counts']['used']} used, {keys['counts']['dropped']} dropped")
    reasons: dict[str, list[str]] = {}
    for key, reason in keys["dropped"].items():
        reasons.setdefault(reason, []).append(key)
    for reason, names in reasons.items():
        print(f"  dropped {len(names)}: {reason} ({names[0]}{', ...' if len(names) > 1 else ''})")
    if fresh := values.get("reinit", {}).get("fresh"):
        print(f"  fresh {len(fresh)}: {', '.join(fresh[:3])}{', ...' if len(fresh) > 3 else ''}")
    if values["forward"]:
        print(f"largest difference from the recorded forward: {values['forward']['largest']:.3g}")
    print(f"certificate {values['certificate']}")


def _read(source: Path, family: str | None, overrides: Mapping[str, Any], base: Path | None) -> _Read:
    if family not in (None, NATIVE, *FAMILIES):
        raise ConfigError(f"convert: --family must be {', '.join((*FAMILIES, NATIVE))}, got {family}")
    adapters = is_adapter_folder(source.parent) and source.name == ADAPTER_FILE
    if adapters:
        model = load_adapters(source.parent, base, **overrides)
    elif source.is_dir():
        if family not in (None, NATIVE):
            raise CheckpointError(f"{source}: must be a file of {family}, got a model folder of setr_fast")
        model = load_model(source, **overrides)
    if source.is_dir() or adapters:
        account = Accounting(used={name: (name,) for name in model.state_dict()})
        return _Read(model.spec, dict(model.state_dict()), account, NATIVE, {})
    mapped = map_source(read_checkpoint(source), None if family == NATIVE else family, **overrides)
    spec, state, extra = mapped.spec, mapped.state, {}
    if spec.head == "none" and "head" in overrides:
        new = encoder_spec(spec, dict(overrides), str(source))
        state = fit_encoder(state, spec, new, mapped.account, str(source))
        fresh = fresh_heads(new)
        extra = {"reinit": {"fresh": sorted(fresh)}}
        spec, state = new, state | fresh
    return _Read(spec, state, mapped.account, mapped.family.name, extra)


def _reinitialised(read: _Read, config: ConvertConfig) -> _Read:
    """Give a model other classes where the user asks for it, in so many words."""
    if not config.reinit_head:
        if config.match_classes or (config.class_names and read.spec.num_classes != len(config.class_names)):
            raise ConfigError("convert: other classes must be asked for, got no --reinit-head; give it as well")
        if config.class_names:
            read.spec = read.spec.replace(class_names=config.class_names)
        return read
    count = config.num_classes or len(config.class_names or ())
    if not count:
        raise ConfigError("convert: --reinit-head must come with the new classes, got none; give --num-classes")
    read.spec, read.state, done = reinit_classes(
        read.spec, read.state, count, config.class_names, match_names=config.match_classes
    )
    read.extra["reinit"] = done
    for name in done["fresh"]:
        if name in read.account.used:
            read.account.changed[name] = "fresh for the new classes" + (", matched ones kept" if done["kept"] else "")
    return read


def _verify(path: Path, family: str, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
    """Read the written file as a user would and hold it to the tensors that were meant."""
    back = map_source(read_checkpoint(path), family)
    wrong = [name for name in state if name not in back.state or not state[name].equal(back.state[name])]
    if wrong or back.spec.replace(name=spec.name) != spec or back.state.keys() != state.keys():
        raise CheckpointError(f"{path}: must be read back to the bit, got {wrong[0] if wrong else 'another spec'}")
