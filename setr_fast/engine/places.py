"""Where a command computes, or one line why not."""

from __future__ import annotations

import torch

from setr_fast.errors import BackendError, ConfigError


def pick_device(name: str | None) -> torch.device:
    """Return the device to compute on: the named one, else the first GPU, else the CPU. A GPU becomes the current one.

    Raises: ConfigError for a name that is none; BackendError for a GPU that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device: must be one of this machine's {torch.cuda.device_count()} GPUs, got {name!r}; "
            "`--device cpu` works anywhere"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: must be cpu, cuda or cuda:N, got {name!r}")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # what is compiled at its first call belongs to the current card
    return device
