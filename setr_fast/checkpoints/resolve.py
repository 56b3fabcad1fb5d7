"""From what a file, a config and the caller say to the spec of the model; what nobody says is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from setr_fast.checkpoints.configs import ForeignConfig
from setr_fast.checkpoints.families.family import Family, Fields, Found, pair
from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.fields import known_names
from setr_fast.models.spec import ModelSpec
from setr_fast.shapes import Grid

HEAD_WIDTH = 64  # of every published SETR and Segmenter
_OTHER_HEADS = {1280: "ViT-H has 16", 1408: "ViT-g has 16", 1664: "ViT-G has 16"}  # by width


def resolve_spec(
    family: Family,
    found: Found,
    config: ForeignConfig | None,
    meta: Mapping[str, Any],
    overrides: Mapping[str, Any],
    where: str,
) -> ModelSpec:
    """Return the spec of a file's own model. Precedence: overrides, config, what the family's code fixes.

    Raises: CheckpointError for contradictions, ConfigError for what must be given or is no option.
    """
    known_names(ModelSpec, overrides, where=where)
    told = _config_fields(family, found, config)
    fields: Fields = {"name": f"{family.name}_{found.fields['head']}", "num_classes": 1, **found.fields}
    fields |= _labels(meta, fields["num_classes"])
    _check_classes(fields, told, overrides, config, where)
    grid_size = told.pop("grid_size", None)
    fields |= told
    questions: list[str] = []
    fields |= _grid(found, fields, told, grid_size, overrides, questions)
    fields |= _heads(found, fields, overrides, questions)
    fields |= _taps(found, fields, overrides, questions)
    for name, answers in found.asked.items():
        if name not in told and name not in overrides:
            known = f" (known: {' or '.join(map(str, answers))})" if answers else ""
            questions.append(f"{name}{known}")
    if questions:
        raise ConfigError(
            f"{where}: what the weights do not say must be given, got no {'; no '.join(questions)}; give it as an "
            "override or put the model's config beside the file"
        )
    fields |= _norms(found, fields, overrides)
    fields |= overrides
    if "image_size" in overrides:
        fields["image_size"] = pair(overrides["image_size"]) or overrides["image_size"]
    if "stride" not in told and "stride" not in overrides:
        fields["stride"] = tuple(found.stride(side) for side in fields["image_size"])
    try:
        return ModelSpec.from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _config_fields(family: Family, found: Found, config: ForeignConfig | None) -> Fields:
    if config is None or config.form != family.config_form:
        return {}
    return family.read_config(config.values, found)


def _labels(meta: Mapping[str, Any], num_classes: int) -> Fields:
    """Names and colours of the classes, where the file holds as many as it has classes."""
    names, palette = meta.get("CLASSES"), meta.get("PALETTE")
    fields: Fields = {}
    if isinstance(names, (list, tuple)) and len(names) == num_classes and all(isinstance(n, str) for n in names):
        fields["class_names"] = tuple(names)
    if isinstance(palette, (list, tuple)) and len(palette) == num_classes:
        colours = [tuple(c) if isinstance(c, (list, tuple)) else () for c in palette]
        if all(len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c) for c in colours):
            fields["palette"] = tuple(colours)
    return fields


def _check_classes(
    fields: Fields, told: Fields, overrides: Mapping[str, Any], config: ForeignConfig | None, where: str
) -> None:
    held = fields["num_classes"]
    if fields["head"] == "none":
        told.pop("num_classes", None)
        return
    if overrides.get("num_classes", held) != held:
        raise CheckpointError(
            f"{where}: num_classes must be {held}, as the weights have it, got {overrides['num_classes']}; "
            "train or convert with --reinit-head for other classes"
        )
    if told.pop("num_classes", held) != held and "num_classes" not in overrides:
        path = config.path if config else where
        raise CheckpointError(
            f"{where}: num_classes must agree between weights and config, got {held} and another in {path}; "
            f"give num_classes={held} if the weights are right"
        )


def _grid(
    found: Found,
    fields: Fields,
    told: Fields,
    grid_size: Any,
    overrides: Mapping[str, Any],
    questions: list[str],
) -> Fields:
    """Grid of the position table and, where nobody says it, the size of a window."""
    patch, rows = fields["patch_size"], found.rows
    grid = overrides.get("pos_grid")
    size = pair(overrides.get("image_size"))
    for candidate in (size, pair(grid_size), pair(told.get("image_size"))):
        if grid is None and candidate is not None:
            grid = _matching(candidate, patch, rows)
            if grid is None and candidate is size:
                questions.append(
                    f"fitting image_size: the position table has {rows} patches, which is not {size[0]}x{size[1]} "
                    f"pixels of {patch}x{patch} patches (image_size means the table; for another window give pos_grid "
                    "too)"
                )
    side = math.isqrt(rows)
    if grid is None and side * side == rows:
        grid = (side, side)
    if grid is None:
        if fields["head"] == "none":
            questions.append(f"square position table: the encoder's has {rows} patches")
        elif size is None:
            pairs = [(h, rows // h) for h in range(1, side + 1) if rows % h == 0]
            shapes = " or ".join(f"{h * patch}x{w * patch} or {w * patch}x{h * patch}" for h, w in pairs[::-1][:2])
            questions.append(f"image_size (the position table has {rows} patches: {shapes}, ...)")
        return {}
    grid = pair(grid) or grid
    result: Fields = {"pos_grid": grid}
    if "image_size" not in fields and isinstance(grid, tuple):
        result["image_size"] = (grid[0] * patch, grid[1] * patch)
    return result


def _matching(size: tuple[int, int], patch: int, rows: int) -> tuple[int, int] | None:
    """Return the grid of a picture if it has that many patches; the rest of a side may count or not."""
    if not all(isinstance(side, int) and side > 0 for side in size):
        return None
    for grid in (Grid.inside(size, patch), Grid.covering(size, patch)):
        if grid.tokens == rows:
            return grid.h, grid.w
    return None


def _heads(found: Found, fields: Fields, overrides: Mapping[str, Any], questions: list[str]) -> Fields:
    result: Fields = {}
    given = {**fields, **overrides}
    width = fields["width"]
    rule = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 and width not in _OTHER_HEADS else None
    heads = given.get("num_heads", rule)
    if heads is None:
        known = f"; {_OTHER_HEADS[width]}" if width in _OTHER_HEADS else ""
        questions.append(f"num_heads (a width of {width} fits {_some_divisors(width)}{known})")
    result["num_heads"] = heads
    if fields["head"] != "mask" or "decoder_num_heads" in given:
        return result
    inner = fields["decoder_width"]
    published: int | None = inner // HEAD_WIDTH if inner % HEAD_WIDTH == 0 and heads == width / HEAD_WIDTH else None
    # Where config is free, every published decoder that is as wide as its encoder has as many heads.
    answer = {
        "config": heads if inner == width else published,
        "width": inner // HEAD_WIDTH or None,
        "encoder": heads,
    }[found.decoder_heads]
    if answer is None and heads is not None:
        questions.append(f"decoder_num_heads (a width of {inner} fits {_some_divisors(inner)})")
    return result | {"decoder_num_heads": answer}


def _some_divisors(width: int) -> str:
    return ", ".join(str(n) for n in range(1, width + 1) if width % n == 0 and 8 <= width // n <= 128) or "a divisor"


def _taps(found: Found, fields: Fields, overrides: Mapping[str, Any], questions: list[str]) -> Fields:
    depth, head = fields["depth"], fields["head"]
    if head in ("linear", "mask", "none"):
        return {} if "taps" in overrides else {"taps": (depth - 1,)}
    taps = overrides.get("taps", fields.get("taps"))
    if taps is None and len(found.taps) == 1:
        taps = found.taps[0]
    if taps is None:
        known = f" (known: {' or '.join(map(str, found.taps))})" if found.taps else ""
        exactly = f"{found.levels}" if head == "mla" else f"at least {max(found.levels, 1)}"
        questions.append(f"taps{known}: {exactly} block numbers of 0..{depth - 1}, shallow to deep")
        return {}
    if isinstance(taps, (list, tuple)):
        wrong = len(taps) != found.levels if head == "mla" else len(taps) < found.levels
        if wrong:
            questions.append(f"fitting taps: the heads in the file read {found.levels} of them, not {len(taps)}")
    return {"taps": taps}


def _norms(found: Found, fields: Fields, overrides: Mapping[str, Any]) -> Fields:
    """The encoder's final norm follows an override of its blocks where the family has one epsilon for both."""
    one = found.fields.get("final_norm_eps") == found.fields.get("layer_norm_eps")
    if "layer_norm_eps" in overrides and one and "final_norm_eps" in found.fields:
        return {"final_norm_eps": overrides["layer_norm_eps"]}
    return {}
