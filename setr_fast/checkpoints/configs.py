"""The config that a code base leaves beside (or inside) its weights, as plain values; never executed."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from setr_fast.checkpoints.faults import Unusable, shortened
from setr_fast.checkpoints.literals import bounded, merged, parse_python
from setr_fast.checkpoints.read import Source
from setr_fast.errors import CheckpointError

Form = Literal["mmseg", "segmenter", "paddle"]
_MAX_BYTES = 1 << 20
_MAX_FILES = 32  # that one config inherits from
_SUFFIXES = (".py", ".yml", ".yaml", ".json")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForeignConfig:
    """A config of another code base."""

    form: Form
    """mmseg: keys model, data_preprocessor, ...; segmenter: variant.yml; paddle: YAML of PaddleSeg or PaddleViT."""
    values: dict[str, Any]
    """Plain dicts, lists, tuples, texts, numbers; inherited files are merged in."""
    path: Path
    """File that it was read from: beside the weights, or the weights file itself."""


def find_config(source: Source) -> ForeignConfig | None:
    """Return the config that belongs to a weights file, or None.

    Looked for in this order: a config of the same name; ``variant.yml``; the text inside the file; ``config.json``;
    the only config of a known form in the folder.

    Raises: CheckpointError for a config that cannot be read.
    """
    if source.path.is_dir():
        return None
    folder = source.path.parent
    named = [source.path.with_suffix(suffix) for suffix in _SUFFIXES]
    for path in (*named, folder / "variant.yml"):
        if path != source.path and path.is_file() and (found := read_config(path)):
            return found
    for key in ("config", "cfg"):  # mmcv, mmengine
        text = source.meta.get(key)
        if isinstance(text, str) and (found := _inside(source.path, text)):
            return found
    if (folder / "config.json").is_file() and (found := read_config(folder / "config.json")):
        return found
    return _only_one(folder)


def read_config(path: Path) -> ForeignConfig | None:
    """Read a config file with all that it inherits; None where it is no config of a known form.

    Raises: CheckpointError where it cannot be read.
    """
    try:
        values = _load(path, (), [])
    except Unusable as fault:
        raise CheckpointError(f"{path}: {fault.what}; {fault.remedy}") from None
    form = _form(values)
    return ForeignConfig(form, values, path) if form else None


def _inside(path: Path, text: str) -> ForeignConfig | None:
    try:
        values = parse_python(text[:_MAX_BYTES])
    except Unusable:  # a note, not a config
        return None
    form = _form(values)
    return ForeignConfig(form, values, path) if form else None


def _only_one(folder: Path) -> ForeignConfig | None:
    found = []
    try:
        paths = sorted(folder.iterdir())
    except OSError:  # a folder that may be entered but not listed
        return None
    for path in paths:
        if path.suffix in (".py", ".yml", ".yaml") and path.is_file() and path.stat().st_size <= _MAX_BYTES:
            try:
                found.append(read_config(path))
            except CheckpointError:  # some other file
                continue
    configs = [config for config in found if config]
    if len(configs) > 1:
        told = ", ".join(config.path.name for config in configs[:5])
        _LOG.warning("%s: several configs (%s), so none is used; name the right one as the weights file", folder, told)
        return None
    return configs[0] if configs else None


def _form(values: Any) -> Form | None:
    if not isinstance(values, dict):
        return None
    model = values.get("model")
    if isinstance(values.get("net_kwargs"), dict):
        return "segmenter"
    if isinstance(values.get("MODEL"), dict):
        return "paddle"
    if isinstance(model, dict) and isinstance(model.get("backbone"), dict):
        return "mmseg" if isinstance(model.get("decode_head"), (dict, list)) else "paddle"
    return None


# --- files and what they inherit -------------------------------------------------------------------------------------


def _load(path: Path, heirs: tuple[Path, ...], read: list[Path]) -> dict[str, Any]:
    """Return a file's values over those of its bases; ``read`` counts the files, each as often as it is inherited."""
    if path.stat().st_size > _MAX_BYTES:
        raise Unusable(f"a config must be at most {_MAX_BYTES} bytes, got {path.stat().st_size}", "give overrides")
    if path.resolve() in heirs:
        raise Unusable("a config must not inherit from itself, got a circle", "give the values as overrides")
    if len(read) >= _MAX_FILES:
        raise Unusable(f"a config must inherit from fewer than {_MAX_FILES} files, got more", "give overrides")
    read.append(path)
    heirs = (*heirs, path.resolve())
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin files with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"a config must be readable text, got {shortened(error)}", "give overrides") from None

    def bases(names: list[str]) -> dict[str, Any]:
        under: dict[str, Any] = {}
        for name in names[:_MAX_FILES]:
            other = path.parent / name
            if name and other.suffix in _SUFFIXES and other.is_file():
                under = merged(under, _load(other, heirs, read))
            elif name:
                _LOG.warning("%s: inherits from %s, which is not there; read without it", path, shortened(name))
        return under

    if path.suffix == ".py":
        values = parse_python(text, bases)
    elif path.suffix == ".json":
        values = _json(text)
    else:
        values = _yaml(text)
        bounded(values)  # before anything walks through it
        names = [values.pop(key, None) for key in ("_base_", "BASE")]
        flat = [n for name in names for n in (name if isinstance(name, list) else [name]) if isinstance(n, str)]
        values = merged(bases(flat), values)
    bounded(values)
    return values


def _json(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"must be JSON, got {shortened(error)}", "correct it or give overrides") from None
    return values if isinstance(values, dict) else {}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, and tuples, which Segmenter's files are full of."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merge keys, which grow without bound, and keys that are lists: nobody writes them here."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("a merge key")
        if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            raise yaml.YAMLError("a key that is no plain value")  # tuples of tuples take for ever to hash


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node)))


def _yaml(text: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Unusable(f"must be plain YAML, got {shortened(error)}", "correct it or give overrides") from None
    return values if isinstance(values, dict) else {}
