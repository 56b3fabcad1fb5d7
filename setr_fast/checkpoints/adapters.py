"""Folders of low-rank adapters and heads alone, for a base that lies elsewhere, in the form of the ``peft`` library.

``adapter_config.json`` says rank, alpha, layers and the base by name; ``adapter_model.safetensors`` holds what was
learned, and in its metadata the hash of the base. ``config.json`` beside them, where we wrote the folder, says what
model it is; folders of ``peft`` lack it, and their base must be a model folder then.

Source: github huggingface/peft, docs/source/developer_guides/checkpoint.md (names of files and keys, the config).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from setr_fast.checkpoints.certificate import tensors_sha256
from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.files import atomic_folder
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.models.store import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    CONFIG_FILE,
    fill_model,
    load_model,
    read_spec,
    read_tensors,
    spec_text,
)
from setr_fast.nn.lora import PARTS

ADAPTERS = "adapters"
"""The name of this form, for ``convert --to``."""
_BEFORE = "base_model.model."
_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
_UNKNOWN = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "fan_in_fan_out", "layer_replication")
"""Settings of ``peft`` that change the function and that our layers do not have."""


def is_adapter_folder(path: str | Path) -> bool:
    """Return whether a path is a folder of adapters."""
    return (Path(path) / ADAPTER_CONFIG).is_file()


def save_adapters(model: SegmentationModel, folder: str | Path, base: str | Path | None = None) -> Path:
    """Write what a model with adapters has learned, and return the weights file.

    ``base``: the file or folder that training started from; it is noted, after the model was rebuilt from it and found
    equal to the bit. None: only its hash is noted.

    Raises: CheckpointError if the model has no adapters, or the base gives another encoder; ConfigError for a folder of
        other files.
    """
    spec, target, state = model.spec, Path(folder), model.state_dict()
    if not spec.lora_rank:
        raise CheckpointError(f"{target}: model must have adapters, got none; train it with --model.lora-rank")
    if target.exists() and not (is_adapter_folder(target) or (target.is_dir() and not any(target.iterdir()))):
        raise ConfigError(f"{target}: must be new, empty or a folder of adapters, got other files; choose another name")
    learned = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if not _of_base(name)}
    digest = tensors_sha256({name: tensor for name, tensor in state.items() if _of_base(name)})
    if base is not None:
        _rebuilt(spec, learned, Path(base), digest, str(base))
    kept = sorted({_module(name) for name in learned if not name.endswith(PARTS)})
    layers = "|".join(re.escape(name) for name in spec.lora_targets)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": None if base is None else str(base),
        "r": spec.lora_rank,
        "lora_alpha": spec.lora_alpha,
        "target_modules": rf"encoder\.blocks\.\d+\.({layers})",
        "modules_to_save": kept,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
    }
    facts = {"format": "pt", "rank": str(spec.lora_rank), "alpha": f"{spec.lora_alpha:g}", "base_sha256": digest}
    facts |= {} if base is None else {"base": str(base)}
    with atomic_folder(target) as temporary:
        save_file({_to_peft(name): tensor for name, tensor in learned.items()}, temporary / ADAPTER_FILE, facts)
        (temporary / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / CONFIG_FILE).write_text(spec_text(spec), encoding="utf-8")
    return target / ADAPTER_FILE


def load_adapters(folder: str | Path, base: str | Path | None = None, **overrides: Any) -> SegmentationModel:
    """Read adapters and heads, put them onto their base: eval mode, float32, CPU. ``base``: where it lies now; else
    where it was.

    Raises: CheckpointError if the base is not there, is another one by its hash, or something does not fit.
    """
    path = Path(folder)
    config = _read_config(path / ADAPTER_CONFIG)
    named = base if base is not None else config.get("base_model_name_or_path")
    if not named:
        raise CheckpointError(
            f"{path}: the base of its adapters must be given, got none; give --base, or base= to load"
        )
    if not Path(named).exists():
        raise CheckpointError(f"{path}: its base must be there, got no {named}; give --base, or base= to load")
    tensors = {_from_peft(name, path): tensor for name, tensor in read_tensors(path / ADAPTER_FILE).items()}
    found = _spec(path, Path(named), config, tensors, overrides)
    return _rebuilt(found, tensors, Path(named), _noted(path / ADAPTER_FILE), str(path))


def _rebuilt(spec: ModelSpec, learned: dict[str, Tensor], base: Path, digest: str, where: str) -> SegmentationModel:
    """Return the model of a base and of what was learned on it, once its encoder has that hash (empty: unknown)."""
    from setr_fast.checkpoints.transfer import start_from

    rules: tuple[Literal["zero", "mean"], ...] = ("zero", "mean")
    for rule in rules[: 2 if spec.in_chans > 3 and digest else 1]:
        model = SegmentationModel(spec)
        start_from(model, base, reinit_head=True, extra_channels=rule, tell=False)
        state = model.state_dict()
        if not digest or tensors_sha256({name: t for name, t in state.items() if _of_base(name)}) == digest:
            return fill_model(spec, state | learned, where)
    raise CheckpointError(
        f"{where}: {base} must be the base that the adapters were trained on, got another by its hash; give that one"
    )


def _spec(path: Path, base: Path, config: dict[str, Any], tensors: dict[str, Tensor], overrides: Any) -> ModelSpec:
    """Return what model it is: as we wrote it, else as base and adapters say."""
    if (path / CONFIG_FILE).is_file():
        return read_spec(path / CONFIG_FILE, **overrides)
    if not base.is_dir():
        raise CheckpointError(
            f"{path}: base must be a model folder of setr_fast where {CONFIG_FILE} is missing, got {base}; convert it"
        )
    ranks = {int(tensor.shape[0]) for name, tensor in tensors.items() if name.endswith("lora_a")}
    layers = {".".join(name.split(".")[3:5]) for name in tensors if name.endswith("lora_a")}
    if len(ranks) != 1:
        raise CheckpointError(f"{path / ADAPTER_FILE}: adapters must be of one rank, got {sorted(ranks) or 'none'}")
    lora = {"lora_rank": ranks.pop(), "lora_alpha": float(config["lora_alpha"]), "lora_targets": tuple(sorted(layers))}
    try:
        return load_model(base).spec.replace(**lora, **overrides)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: must be JSON, got {' '.join(str(error).split())[:200]}; save it again"
        ) from None
    kind = config.get("peft_type") if isinstance(config, dict) else config
    if kind != "LORA" or not isinstance(config.get("lora_alpha"), int | float):
        raise CheckpointError(f"{path}: must describe adapters of peft_type LORA with their lora_alpha, got {kind!r}")
    other = [name for name in _UNKNOWN if config.get(name)] + ["bias"] * (config.get("bias", "none") != "none")
    if other:
        raise CheckpointError(f"{path}: {other[0]} must be off, got {config[other[0]]!r}; merge the adapters with peft")
    return config


def _noted(path: Path) -> str:
    """Return the hash of the base that a file of adapters notes; empty if it notes none."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return str(header.get("__metadata__", {}).get("base_sha256", ""))


def _of_base(name: str) -> bool:
    """Whether a tensor is the base's: in the encoder, and no adapter."""
    return name.startswith("encoder.") and not name.endswith(PARTS)


def _module(name: str) -> str:
    """Return the module that ``peft`` has to keep whole for a tensor: of a list of modules, one of them."""
    first, second = name.split(".")[:2]
    return f"{first}.{second}" if second.isdecimal() else first


def _to_peft(name: str) -> str:
    layer, _, last = name.rpartition(".")
    return f"{_BEFORE}{layer}.{_PARTS.get(last, last)}"


def _from_peft(name: str, path: Path) -> str:
    own = name.removeprefix(_BEFORE)
    for ours, theirs in _PARTS.items():
        if own.endswith(theirs):
            own = own.removesuffix(theirs) + ours
    if own == name or (own.startswith("encoder.") and not own.endswith(PARTS)):
        raise CheckpointError(f"{path / ADAPTER_FILE}: must hold adapters of the encoder and heads, got {name}")
    return own
