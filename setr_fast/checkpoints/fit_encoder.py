"""Encoders fitted to a model that was not made for them: other pictures, other tokens, no final norm."""

from __future__ import annotations

from torch import Tensor

from setr_fast.checkpoints.accounting import Accounting
from setr_fast.errors import ConfigError
from setr_fast.models.spec import ModelSpec
from setr_fast.nn.position import resize_positions

_SIZES = ("width", "depth", "num_heads", "patch_size", "in_chans", "mlp_ratio", "qkv_bias", "patch_bias")


def fit_encoder(
    state: dict[str, Tensor], old: ModelSpec, new: ModelSpec, account: Accounting, where: str
) -> dict[str, Tensor]:
    """Return the encoder's tensors as a model of another spec takes them; every change is noted in the account.

    The position table is resized as the new spec's ``pos_resize`` says (bilinear where it says none); the distillation
    token and the final norm are dropped where the model has none.

    Raises: ConfigError where the sizes differ, or the model wants a token or a norm that the encoder lacks.
    """
    differ = [
        f"{name} {getattr(old, name)} (model: {getattr(new, name)})"
        for name in _SIZES
        if getattr(old, name) != getattr(new, name)
    ]
    differ += [name for name in ("distilled", "final_norm") if getattr(new, name) and not getattr(old, name)]
    if differ:
        raise ConfigError(
            f"{where}: the encoder must have the model's sizes, got {', '.join(differ)}; choose a model like the file"
        )
    state = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    if old.final_norm and not new.final_norm:
        for name in ("encoder.norm.weight", "encoder.norm.bias"):
            del state[name]
            account.drop_target(name, "the heads of SETR take the blocks' outputs without the encoder's final norm")
    table = state["encoder.pos_embed"]
    if old.distilled and not new.distilled:
        del state["encoder.dist_token"]
        account.drop_target("encoder.dist_token", "the model has no distillation token")
        account.changed["encoder.pos_embed"] = "row of the distillation token left out"
        table = table[:, [0, *range(2, table.shape[1])]]
    if old.pos_grid != new.pos_grid:
        mode = "bicubic" if new.pos_resize == "bicubic" else "bilinear"
        table = resize_positions(table, old.pos_grid, new.pos_grid, new.leading_tokens, mode)
        before = account.changed.get("encoder.pos_embed")
        what = f"{old.pos_grid[0]}x{old.pos_grid[1]} resized to {new.pos_grid[0]}x{new.pos_grid[1]}, {mode}"
        account.changed["encoder.pos_embed"] = f"{before}; {what}" if before else what
    state["encoder.pos_embed"] = table.contiguous()
    return state
