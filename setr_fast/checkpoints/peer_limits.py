"""What other code bases cannot build, although a file in their layout can hold it: sizes that stand in their code.

Such a file is written all the same, and read back to the bit here; the certificate and a notice say what stands against
its own code reading it.

Source: the constructors of mmseg/models of fudan-zvg/SETR, segm/model/factory.py, paddleseg/models of 2.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from setr_fast.models.spec import ModelSpec


def limits(family: str, spec: ModelSpec) -> list[str]:
    """Return every reason why a code base cannot build a model that its file holds; none where it can."""
    return list(_LIMITS[family](spec)) if family in _LIMITS else []


def _setr(spec: ModelSpec) -> Iterator[str]:
    h, w = spec.image_size
    if h != w:
        yield f"pictures must be square, got {h}x{w}"
    if (h // spec.patch_size, w // spec.patch_size) != spec.pos_grid:
        yield f"the position table must be that of {h}x{w} pictures, got {spec.pos_grid[0]}x{spec.pos_grid[1]} patches"
    yield from _channels(spec)
    if spec.head == "mla" and spec.aux_levels and spec.head_channels != 256:
        yield f"head_channels must be 256 for its auxiliary heads, got {spec.head_channels}"
    if spec.head == "mla" and len(spec.taps) != 4:
        yield f"taps must be 4, got {len(spec.taps)}"


def _paddleseg(spec: ModelSpec) -> Iterator[str]:
    if spec.pos_grid[0] != spec.pos_grid[1]:
        yield f"the position table must be square, got {spec.pos_grid[0]}x{spec.pos_grid[1]} patches"
    yield from _channels(spec)
    if spec.head == "mla" and len(spec.taps) != 4:
        yield f"taps must be 4, got {len(spec.taps)}"
    wanted = {"naive": len(spec.taps) - 1, "pup": len(spec.taps), "mla": len(spec.taps)}.get(spec.head, 0)
    if wanted != len(spec.aux_levels):
        yield f"auxiliary heads must be {wanted}, got {len(spec.aux_levels)}"


def _segmenter(spec: ModelSpec) -> Iterator[str]:
    if spec.mlp_ratio != 4:
        yield f"mlp_ratio must be 4, got {spec.mlp_ratio}"
    if spec.head == "mask" and spec.decoder_width != spec.width:
        yield f"decoder_width must be the encoder's {spec.width}, got {spec.decoder_width}"
    if spec.head == "mask" and spec.decoder_mlp_ratio != 4:
        yield f"decoder_mlp_ratio must be 4, got {spec.decoder_mlp_ratio}"


def _channels(spec: ModelSpec) -> Iterator[str]:
    if spec.head in ("naive", "pup"):
        for name in ("head_channels", "aux_channels") if spec.aux_levels else ("head_channels",):
            if getattr(spec, name) != 256:
                yield f"{name} must be 256, got {getattr(spec, name)}"


_LIMITS: dict[str, Callable[[ModelSpec], Iterator[str]]] = {
    "setr": _setr,
    "segmenter": _segmenter,
    "paddleseg": _paddleseg,
}
