"""Options of the data path. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from setr_fast.data.formats.signatures import MAX_PIXELS
from setr_fast.data.layouts.known import known_set
from setr_fast.errors import ConfigError
from setr_fast.fields import known_numbers

MOST_WORKERS = 1024  # processes of one trainer


@dataclass(frozen=True)
class DataConfig:
    """Where pictures and masks come from, and what the ids in the masks mean."""

    root: Path | None = None
    """Folder with {split}/{images,masks} or images/{split} + labels/{split}; none: the built-in scenes."""
    shards: str | None = None
    """WebDataset shards instead of a folder, on disk or by http: a folder that `setr-fast data shards` wrote (both
    splits), an index .json, or a pattern such as train-{000000..000063}.tar."""
    val_shards: str | None = None
    """Shards to validate on, where --data.shards names those of one split."""
    shard_picture: str = ""
    """End of a picture's name in a shard, such as jpg; none: told by the names."""
    shard_mask: str = ""
    """End of a mask's name in a shard, such as seg.png; none: told by the names."""
    shard_mix: int = 16
    """Shards whose samples are mixed; an epoch takes the shards in groups of as many, in random order."""
    shard_cache: Path | None = None
    """Folder that fetched shards are kept in; none: setr_fast/shards in the user's cache folder."""
    shard_cache_gib: float = 64.0
    """Largest size of that folder; it has to hold the shards that are mixed, twice."""
    dataset: str | None = None
    """Known data set in its official layout (see `setr-fast data list`); it sets what is left at its default here."""
    train_split: str = "train"
    """Name of the split to train on."""
    val_split: str = "val"
    """Name of the split to validate on."""
    classes: Path | None = None
    """Class table (csv, json or toml); none: classes.* in the root, else counted from the masks."""
    num_classes: int | None = None
    """Number of classes where there is no class table; none: counted from the masks."""
    ignore_index: int | None = None
    """Id in the masks that means 'ignore', beside the class table's ignored ids and 255."""
    label_offset: int = 0
    """Added to every id in the masks; ids below zero are then ignored (-1 is 'reduce zero label')."""
    mask_colours: Literal["index", "rgb"] = "index"
    """Masks hold class ids (index) or the class table's colours (rgb)."""
    picture_suffix: str = ""
    """End of a picture's stem that its mask's does not have, e.g. '_leftImg8bit'."""
    mask_suffix: str = ""
    """What a mask's stem has beyond its picture's, e.g. '_mask'."""
    channels: int = 3
    """Channels of a picture. Beyond the three colours: RGBA files (4), .npy arrays [H, W, C], or --data.extra."""
    extra: str | None = None
    """Folder beside the pictures' that holds each picture's further channels under its stem, e.g. thermal."""
    extra_range: tuple[float, float] | None = None
    """Numbers that become 0 and 255 where arrays are floating-point; none: the extremes of each array."""
    extra_mean: tuple[float, ...] = (127.5,)
    """Mean that is subtracted from further channels, one number for all or one each, 0..255."""
    extra_std: tuple[float, ...] = (127.5,)
    """Standard deviation that they are divided by."""
    crop_box: tuple[int, int, int, int] | None = None
    """Part of every picture and mask that is used: left, top, right, bottom, in pixels (DADA-seg's black bars)."""
    image_column: str | None = None
    """Column of a Parquet or Arrow table that holds the pictures; none: image, img, ..."""
    label_column: str | None = None
    """Column that holds the masks; none: label, annotation, mask, ..."""
    sampling: Literal["uniform", "rare_classes"] = "uniform"
    """uniform: every picture once per epoch; rare_classes: a class is drawn first, the rarer the likelier, then one of
    the pictures that show it (DAFormer)."""
    rare_temperature: float = 0.01
    """Of rare_classes: the lower, the more the rarest classes are preferred."""
    check: Literal["full", "headers", "off"] = "full"
    """How much of every file is verified before the first step."""
    workers: int | None = None
    """Processes that decode and augment, per trainer; the results do not depend on it. 0: the trainer itself does;
    none: 0 on a CPU, up to 8 with a GPU."""
    max_pixels: int = MAX_PIXELS
    """Largest picture that is decoded, in pixels."""
    builtin_train: int = 512
    """Built-in scenes to train on."""
    builtin_val: int = 64
    """Built-in scenes to validate on."""
    builtin_size: int = 128
    """Side of a built-in scene, in pixels."""

    def __post_init__(self) -> None:
        known_numbers(self, "data")
        if self.dataset is not None:
            for name, value in known_set(self.dataset).options.items():
                if getattr(self, name) == getattr(type(self), name):
                    object.__setattr__(self, name, value)
        if self.num_classes is not None and not 2 <= self.num_classes <= 254:
            raise ConfigError(f"data.num_classes: must be 2..254, got {self.num_classes}")
        if self.ignore_index is not None and not 0 <= self.ignore_index < 2**31:
            raise ConfigError(f"data.ignore_index: must be an id that a mask may hold, got {self.ignore_index}")
        if not 3 <= self.channels <= 64:
            raise ConfigError(f"data.channels: must be 3..64, got {self.channels}")
        for name, values in (("extra_mean", self.extra_mean), ("extra_std", self.extra_std)):
            if len(values) not in (1, self.channels - 3):
                raise ConfigError(f"data.{name}: must be one number, or one per further channel, got {len(values)}")
        if min(self.extra_std, default=0.0) <= 0 or not self.rare_temperature > 0:
            got = f"{self.extra_std} and {self.rare_temperature}"
            raise ConfigError(f"data: extra_std and rare_temperature must be positive, got {got}")
        if self.extra is not None and (self.channels == 3 or "/" in self.extra or self.extra in ("", ".", "..")):
            raise ConfigError(
                f"data.extra: must be a folder's plain name beside --data.channels 4 or more, got {self.extra!r}"
            )
        if self.extra_range is not None and not self.extra_range[0] < self.extra_range[1]:
            raise ConfigError(f"data.extra_range: must be low < high, got {self.extra_range}")
        if self.crop_box is not None:
            left, top, right, bottom = self.crop_box
            if min(left, top) < 0 or right <= left or bottom <= top:
                raise ConfigError(f"data.crop_box: must be 0 <= left < right, top < bottom, got {self.crop_box}")
        if self.shards is not None and self.root is not None:
            raise ConfigError("data.shards: must not be given together with data.root; leave one of them out")
        if self.val_shards is not None and self.shards is None:
            raise ConfigError("data.val_shards: must come with data.shards, the shards to train on")
        of_shards = ("shard_picture", "shard_mask", "shard_mix", "shard_cache", "shard_cache_gib")
        given = [name for name in of_shards if getattr(self, name) != getattr(type(self), name)]
        if self.shards is None and given:
            raise ConfigError(f"data.{given[0]}: must come with data.shards, got it alone; leave it out")
        if self.shard_mix < 1 or not self.shard_cache_gib > 0:
            got = f"{self.shard_mix} and {self.shard_cache_gib}"
            raise ConfigError(f"data: shard_mix must be 1 or more and shard_cache_gib positive, got {got}")
        if self.max_pixels < 1:
            raise ConfigError(f"data.max_pixels: must be 1 or more, got {self.max_pixels}")
        if self.workers is not None and not 0 <= self.workers <= MOST_WORKERS:
            raise ConfigError(f"data.workers: must lie in 0..{MOST_WORKERS}, got {self.workers}")
        scenes = self.builtin_train, self.builtin_val
        if not 1 <= min(scenes) <= max(scenes) <= 10**7 or not 32 <= self.builtin_size <= 4096:
            raise ConfigError(
                "data: builtin_train and builtin_val must lie in 1..10000000, builtin_size in 32..4096, got "
                f"{scenes[0]}, {scenes[1]}, {self.builtin_size}"
            )


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to a training sample, in this order: resize, crop, flip, colours, pad."""

    crop: tuple[int, int] = (128, 128)
    """Height and width of a training crop, in pixels."""
    base_scale: tuple[int, int] | None = None
    """Long and short edge that ratio 1 means (keep-ratio rule of mmsegmentation); none: the picture's own size."""
    ratio_range: tuple[float, float] = (0.5, 2.0)
    """The resize ratio is drawn uniformly from this range."""
    ratio_step: float = 0.0
    """Distance of the ratios that are drawn, from the lowest on (PaddleSeg: 0.25); 0: any."""
    cat_max_ratio: float = 0.75
    """A crop is redrawn, up to ten times, while one class covers this share of its valid pixels or more."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Brightness, contrast, saturation and hue as in mmsegmentation's PhotoMetricDistortion, unless ``distort``."""
    distort: float = 0.0
    """Above 0: colours as in PaddleSeg's RandomDistort, in random order, by factors of 1 - distort to 1 + distort."""

    def __post_init__(self) -> None:
        known_numbers(self, "augment")
        low, high = self.ratio_range
        if min(*self.crop, *(self.base_scale or (1, 1))) < 1:
            raise ConfigError(f"augment: crop and base_scale must be positive, got {self.crop}, {self.base_scale}")
        if not 0 < low <= high:
            raise ConfigError(f"augment.ratio_range: must be 0 < low <= high, got {self.ratio_range}")
        if not 0 <= self.ratio_step <= high - low and self.ratio_step:
            raise ConfigError(f"augment.ratio_step: must lie in 0..{high - low:g}, got {self.ratio_step}")
        if not 0 <= self.distort < 1:
            raise ConfigError(f"augment.distort: must lie in [0, 1), got {self.distort}")
        if not 0 < self.cat_max_ratio <= 1:
            raise ConfigError(f"augment.cat_max_ratio: must lie in (0, 1], got {self.cat_max_ratio}")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"augment.flip: must lie in [0, 1], got {self.flip}")
