"""``setr-fast plan``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from setr_fast.cli._parse import parse
from setr_fast.errors import EXIT_ENVIRONMENT, EXIT_OK, ConfigError

MOST_PICTURES = 10**6  # of one GPU


@dataclass(frozen=True)
class PlanArguments:
    """Memory by part and time of a training step, before it is run; exit code 4 if it does not fit."""

    model: str = "setr_pup_vit_l16"
    """One of ``setr-fast models``."""
    crop: tuple[int, ...] = (512,)
    """Side of a training crop, or its height and width, in pixels."""
    batch: int = 8
    """Pictures per GPU and step."""
    gpus: str = "1x80GiB"
    """Number and kind, such as 8x80GiB, 4xA100, 1024xH100; cpu: this machine's."""
    classes: int = 150
    """Classes that are predicted."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """What the network computes in."""
    fsdp: bool = True
    """Shard over the GPUs, or give each a whole copy."""
    replicas: int = 1
    """Copies of the whole model under --fsdp."""
    reshard: Literal["never", "always"] = "never"
    """As --fsdp.reshard of train."""
    recompute: Literal["none", "selective", "full"] = "none"
    """As --train.recompute."""
    accumulate: int = 1
    """As --train.accumulate."""
    ema: bool = False
    """The run averages its weights."""
    optim: Literal["adamw", "sgd"] = "adamw"
    """As --optim.name of train."""


def run(argv: list[str]) -> int:
    a = parse(PlanArguments, argv, "plan")
    if len(a.crop) > 2 or min(a.crop, default=0) < 1 or not 1 <= a.batch <= MOST_PICTURES:
        raise ConfigError(
            f"plan: crop and batch must be positive, crop of one or two sides, batch at most {MOST_PICTURES}, got "
            f"{a.crop}, {a.batch}"
        )
    from setr_fast.train.options import TrainConfig
    from setr_fast.train.plan_command import plan_command

    config = TrainConfig(recompute=a.recompute, accumulate=a.accumulate, ema=0.5 if a.ema else 0.0)
    fitting = plan_command(
        a.model,
        classes=a.classes,
        crop=(a.crop[0], a.crop[-1]),
        batch=a.batch,
        gpus=a.gpus,
        precision=a.precision,
        fsdp=a.fsdp,
        replicas=a.replicas,
        reshard=a.reshard,
        optimizer=a.optim,
        config=config,
    )
    return EXIT_OK if fitting else EXIT_ENVIRONMENT
