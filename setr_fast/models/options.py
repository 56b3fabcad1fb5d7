"""Options that choose and shape a model. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class ModelConfig:
    """A named model and what differs from it; what is not given is the named model's own."""

    name: str = "setr_pup_vit_t16"
    """One of ``setr-fast models``."""
    patch_size: int | None = None
    """Side of a patch, in pixels."""
    width: int | None = None
    """Width of a token."""
    depth: int | None = None
    """Encoder blocks."""
    num_heads: int | None = None
    """Attention heads per block."""
    taps: tuple[int, ...] | None = None
    """Blocks, from 0, whose output the heads read."""
    class_token: str | None = None
    """keep: it takes part in attention; drop: it does not (official SETR-MLA, PaddleViT)."""
    head_channels: int | None = None
    """Channels of the SETR heads' convolutions."""
    drop_path: float | None = None
    """Stochastic depth at the last block, rising linearly from 0."""
    dropout: float | None = None
    """Dropout in the encoder."""
    loss_averaging: str | None = None
    """all: ignored pixels count in the mean (SETR); valid: they do not (Segmenter)."""
    start: Path | None = None
    """Saved model or checkpoint of any known code base (an encoder will do) whose weights training starts from."""
    reinit_head: bool = False
    """With start: heads that do not fit, as with other classes, start fresh."""

    extra_channels: Literal["zero", "mean"] = "zero"
    """With start, and pictures of more channels than the file's three: the patch embedding's kernels of the further
    ones are zero, so that training starts from the file's function, or the mean of those of the three colours."""

    def overrides(self) -> dict[str, Any]:
        """Return what the user set, as arguments of ``create_model``."""
        given = {k: v for k, v in asdict(self).items() if v is not None}
        return {k: v for k, v in given.items() if k not in ("name", "start", "reinit_head", "extra_channels")}
