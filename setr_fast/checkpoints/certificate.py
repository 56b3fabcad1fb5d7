"""The parity certificate: what became of every key, hashes of both sides, and how far a recorded forward is met."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr_fast import __version__
from setr_fast.checkpoints.accounting import Accounting
from setr_fast.checkpoints.archive import read_directory
from setr_fast.checkpoints.arrays import read_npz
from setr_fast.checkpoints.faults import Unusable, shortened
from setr_fast.errors import CheckpointError, SetrFastError
from setr_fast.models.model import SegmentationModel
from setr_fast.models.store import WEIGHTS_FILE

NAME = "certificate.json"


def certificate(
    source: Path,
    result: Path,
    account: Accounting,
    model: SegmentationModel,
    *,
    family: str,
    target: str,
    extra: Mapping[str, Any],
    forward: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the certificate as plain values.

    ``result`` is the written weights file; ``forward`` is what ``compare_forward`` gave.
    """
    where = source / WEIGHTS_FILE if source.is_dir() else source
    return {
        "format": "setr_fast parity certificate",
        "version": 1,
        "source": {"name": where.name, "family": family, "bytes": where.stat().st_size, "sha256": file_sha256(where)},
        "result": {
            "name": result.name,
            "family": target,
            "bytes": result.stat().st_size,
            "sha256": file_sha256(result),
        },
        "tensors_sha256": tensors_sha256(model.state_dict()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "spec": model.spec.to_dict(),
        "keys": account.to_dict()
        | {"counts": {"used": sum(map(len, account.used.values())), "dropped": len(account.dropped)}},
        **extra,
        "forward": forward,
        "versions": {"setr_fast": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def certificate_text(values: Mapping[str, Any]) -> str:
    """Return a certificate as the text of its file."""
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def file_sha256(path: Path) -> str:
    """Return the hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the hash of names, dtypes, shapes and values, in hex: equal for equal weights in whatever file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        if tensor.numel():
            raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            digest.update(raw)
    return digest.hexdigest()


def compare_forward(model: SegmentationModel, recorded: Path) -> dict[str, Any]:
    """Run the model on a recorded input and return the largest difference from each recorded output.

    The file is an ``.npz`` with ``input`` [B, 3, H, W] (normalised) and one or more of ``logits`` (at the input's
    size), ``logits_low`` (before the last resize), ``auxN_logits_low``; a float64 run may add ``logits_low_f64``.

    Raises: CheckpointError for a file without them, or outputs of other shapes.
    """
    arrays = _arrays(recorded)
    outputs = [name for name in arrays if name in ("logits", "logits_low") or _aux_index(name) is not None]
    if "input" not in arrays or not outputs:
        told = ", ".join(shortened(name, 30) for name in list(arrays)[:6]) or "nothing"
        raise CheckpointError(f"{recorded}: must hold input and logits or logits_low, got {told}; record them again")
    picture = arrays["input"].float()
    try:
        with torch.inference_mode():
            low = model.all_logits(picture)
            found = {"logits": model(picture), "logits_low": low[0]}
            found |= {f"aux{index}_logits_low": logits for index, logits in enumerate(low[1:])}
    except SetrFastError as error:
        raise CheckpointError(f"{recorded}: its input must fit the model, got {error}") from None
    differences = {}
    for name in outputs:
        if name not in found or found[name].shape != arrays[name].shape:
            got = list(found[name].shape) if name in found else "no such head"
            want = list(arrays[name].shape)
            raise CheckpointError(f"{recorded}: {name} must be {want} as recorded, got {got}; correct the overrides")
        differences[name] = float((found[name].double() - arrays[name].double()).abs().max())
    result: dict[str, Any] = {
        "recorded": recorded.name,
        "sha256": file_sha256(recorded),
        "max_abs_difference": differences,
        "largest": max(differences.values()),
    }
    if "logits_low_f64" in arrays and "logits_low" in arrays:
        result["recorded_float32_error"] = float((arrays["logits_low"] - arrays["logits_low_f64"]).abs().max())
    if not np.isfinite(result["largest"]):
        raise CheckpointError(f"{recorded}: outputs must be finite, got NaN or infinite differences; check the weights")
    return result


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            entries = read_directory(file)
            wanted = ("input", "logits", "logits_low", "logits_low_f64")
            kept = {
                name: entry
                for name, entry in entries.items()
                if (stem := name.removesuffix(".npy")) in wanted or _aux_index(stem) is not None
            }
            return read_npz(file, kept)
    except Unusable as fault:
        raise CheckpointError(f"{path}: {fault.what}; {fault.remedy}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: must be readable, got {error.strerror}; check the path") from None


def _aux_index(name: str) -> int | None:
    digits = name.removeprefix("aux").removesuffix("_logits_low")
    return int(digits) if name == f"aux{digits}_logits_low" and digits.isdecimal() else None
