"""Options of training. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from setr_fast.errors import ConfigError
from setr_fast.fields import known_numbers

LONGEST_WAIT_S = 30 * 24 * 3600
LARGEST = 1e12
"""Of rates and factors: beyond it lies no training, and products of three leave float32."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule per step, linear warm-up before it."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser; the published SETR and Segmenter recipes use sgd."""
    lr: float = 1e-3
    """Learning rate of the encoder after warm-up."""
    head_lr_multiplier: float = 1.0
    """Learning rate of the heads as a multiple of the encoder's (published SETR: 10)."""
    aux_norms_as_encoder: bool = False
    """Norms of the auxiliary heads learn at the encoder's rate (PaddleViT)."""
    layer_decay: float = 1.0
    """Learning rate of each encoder block as a multiple of that of the block above it (BEiT: 0.65 to 0.9); what lies
    below the blocks counts as one more. 1: one rate for all."""
    schedule: Literal["poly", "cosine"] = "poly"
    """poly: (1 - step / steps) to the power; cosine: half a period; both end at min_lr."""
    min_lr: float = 1e-5
    """Learning rate that the schedule ends with."""
    power: float = 0.9
    """Exponent of the poly schedule."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    weight_decay: float = 0.05
    """Weight decay of matrices and convolution kernels."""
    decay_all: bool = False
    """Decay norms, biases, position and class embeddings too, as the published recipes would."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov momentum (official Segmenter)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Averaging factors of adamw."""

    def __post_init__(self) -> None:
        known_numbers(self, "optim")
        if not self.lr > 0 or self.min_lr < 0 or self.head_lr_multiplier <= 0:
            raise ConfigError(
                f"optim: lr and head_lr_multiplier must be positive, got {self.lr}, {self.head_lr_multiplier}"
            )
        for name in ("lr", "head_lr_multiplier", "weight_decay", "power"):
            if getattr(self, name) > LARGEST:
                raise ConfigError(f"optim.{name}: must be at most {LARGEST:g}, got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay: must lie in (0, 1], got {self.layer_decay}")
        if self.min_lr > self.lr:
            raise ConfigError(f"optim.min_lr: must be at most optim.lr, {self.lr}, got {self.min_lr}; lower it as well")
        if self.warmup_steps < 0:
            raise ConfigError(f"optim.warmup_steps: must be 0 or more, got {self.warmup_steps}")
        if self.power < 0 or self.weight_decay < 0:
            raise ConfigError(f"optim: power and weight_decay must be 0 or more, got {self.power}, {self.weight_decay}")
        if not all(0 <= factor < 1 for factor in (self.momentum, *self.betas)):
            raise ConfigError(f"optim: momentum and betas must lie in [0, 1), got {self.momentum}, {self.betas}")


@dataclass(frozen=True)
class LossConfig:
    """What is minimised. Every head is judged alike; what the loss is averaged over is the model's loss_averaging."""

    kind: tuple[Literal["cross_entropy", "ohem", "focal", "dice", "lovasz"], ...] = ("cross_entropy",)
    """One or several losses, which are added up. ohem: cross entropy of hard pixels only."""
    weights: tuple[float, ...] = (1.0,)
    """What each is multiplied by; a single number holds for all."""
    class_weights: tuple[float, ...] | None = None
    """One weight per class; none: all alike."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes (cross_entropy only)."""
    ohem_threshold: float = 0.7
    """Pixels whose class is given at least this probability are easy."""
    ohem_min_kept: int = 100000
    """Pixels that are kept however easy they are: per picture (mmseg) or per batch (paddleseg)."""
    ohem_rule: Literal["mmseg", "paddleseg"] = "mmseg"
    """mmseg: easy pixels count as zeros in the average; paddleseg: the average is over the hard ones."""
    focal_gamma: float = 2.0
    """Exponent of (1 - p)."""
    focal_alpha: float = 1.0
    """Factor of the focal loss."""
    dice_exponent: Literal[1, 2] = 1
    """Exponent of the probabilities in the denominator: 1 (PaddleSeg) or 2 (V-Net, mmsegmentation)."""
    dice_smooth: float = 1.0
    """Added to numerator and denominator."""

    def __post_init__(self) -> None:
        known_numbers(self, "loss")
        if not self.kind or len(set(self.kind)) != len(self.kind):
            raise ConfigError(
                f"loss.kind: must name at least one loss, none twice, got {' '.join(self.kind) or 'none'}"
            )
        if len(self.weights) not in (1, len(self.kind)):
            raise ConfigError(f"loss.weights: must be one number or {len(self.kind)}, got {len(self.weights)}")
        if min(self.weights, default=-1.0) < 0 or max(self.weights) == 0:
            raise ConfigError(f"loss.weights: must be 0 or more and not all 0, got {self.weights}")
        given = self.class_weights
        if given is not None and (min(given, default=-1.0) < 0 or not any(given)):
            raise ConfigError(f"loss.class_weights: must be 0 or more and not all 0, got {given}")
        if not 0 <= self.label_smoothing <= 1:
            raise ConfigError(f"loss.label_smoothing: must lie in 0..1, got {self.label_smoothing}")
        if self.label_smoothing and "cross_entropy" not in self.kind:
            raise ConfigError(f"loss.label_smoothing: needs --loss.kind cross_entropy, got {' '.join(self.kind)}")
        if not 0 < self.ohem_threshold <= 1 or self.ohem_min_kept < 1:
            got = f"{self.ohem_threshold} and {self.ohem_min_kept}"
            raise ConfigError(f"loss: ohem_threshold must lie in (0, 1] and ohem_min_kept be 1 or more, got {got}")
        if self.ohem_min_kept >= 2**63:
            raise ConfigError(f"loss.ohem_min_kept: must be below 2^63, got {self.ohem_min_kept}")
        if self.focal_gamma < 0 or self.focal_alpha <= 0 or self.dice_smooth < 0:
            got = f"{self.focal_gamma}, {self.dice_smooth}, {self.focal_alpha}"
            raise ConfigError(
                f"loss: focal_gamma, focal_alpha, dice_smooth must not be negative, alpha not 0, got {got}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = 240
    """Optimiser steps."""
    batch_size: int = 16
    """Samples per optimiser step over all processes."""
    accumulate: int = 1
    """Parts in which each process works through its share of the batch, to save memory; batch norm sees one part."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0: not clipped."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: autocast; auto: bf16 where the machine multiplies it in hardware."""
    ema: float = 0.0
    """Decay of the averaged weights that are validated and saved; 0: none."""
    seed: int = 0
    """Seed of weights, sample order, augmentation and dropout."""
    validate_every: int = 0
    """Steps between validations, of which the last step is always one; 0: five a run."""
    save_every: int = 0
    """Steps between checkpoints; 0: with every validation."""
    keep: int = 2
    """Checkpoints that are kept, the newest first."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    overlays: int = 6
    """Validation pictures that are drawn with their prediction."""
    tensorboard: bool = False
    """Write TensorBoard events as well (pip install 'setr_fast[tensorboard]')."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass of a block makes again: nothing; all but matrix products and attention; all."""
    compile: bool = False
    """Compile every encoder block (torch.compile)."""
    on_nan: Literal["stop", "skip"] = "stop"
    """After a loss or gradient that is not finite: stop; or skip the step, at most ten in a row. Either way the
    samples' names are written to diverged.jsonl in the run folder."""
    save: Literal["async", "wait"] = "async"
    """Write checkpoints while training goes on, or wait for each."""
    restarts: int = 3
    """How often processes that were killed are started again from the newest checkpoint."""
    peak_tflops: float = 0.0
    """Peak of one GPU in TFLOP/s that the model FLOPs utilisation is stated against; 0: that of cards we know."""

    def __post_init__(self) -> None:
        known_numbers(self, "train")
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}: must be 1 or more, got {getattr(self, name)}")
        for name in ("restarts", "peak_tflops", "clip_norm", "validate_every", "save_every", "overlays"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name}: must be 0 or more, got {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"train.seed: must be a number of 64 bits, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"train.ema: must lie in [0, 1), got {self.ema}")


@dataclass(frozen=True)
class ParallelConfig:
    """How --fsdp spreads a model, and how long processes wait for each other."""

    reshard: Literal["never", "always", "host"] = "never"
    """When gathered weights of a block are freed after its forward pass: never (gradients and optimiser state stay
    sharded); always, gathering them again for the backward; host: down to the shards of one host."""
    replicas: int = 1
    """Copies of the whole model, each sharded over an equal part of the processes (HSDP); 0: one per host."""
    group: int = 1
    """Encoder blocks that are gathered together."""
    timeout: float = 600.0
    """Seconds that a process waits for the others before the run fails."""

    def __post_init__(self) -> None:
        if self.replicas < 0 or self.group < 1:
            raise ConfigError(
                f"fsdp: replicas must be 0 or more, group 1 or more, got {self.replicas} and {self.group}"
            )
        if not 0 < self.timeout <= LONGEST_WAIT_S:
            raise ConfigError(f"fsdp.timeout: must lie in 0..{LONGEST_WAIT_S} seconds, got {self.timeout}")
