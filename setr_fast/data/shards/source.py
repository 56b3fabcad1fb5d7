"""Labelled pictures in WebDataset shards: any sample by number, in an order that reads a few shards at a time.

WebDataset's own pipeline streams: each worker takes shards of its own and shuffles in a buffer, so the order depends on
the number of workers, and to go on somewhere means to stream everything before it. Here the order is a function of
(seed, epoch, place): an epoch takes the shards in random order, in groups of ``shard_mix``, and the samples of a group
in random order. So ranks, workers and resumed runs get the same samples, and there is no buffer to bring back.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from setr_fast.data.classes import ClassTable, read_class_table
from setr_fast.data.draws import philox
from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.formats.decode import read_image
from setr_fast.data.masks import MaskReader
from setr_fast.data.options import DataConfig
from setr_fast.data.shards.fetch import Cache, ShardList, class_table, expand, is_address
from setr_fast.data.shards.index import Endings, ShardIndex, count_samples, read_index
from setr_fast.errors import ConfigError, SetrFastError

logger = logging.getLogger("setr_fast")

THREADS = 4


class ShardSource:
    """One split in shards.

    Raises: FaultError if the shards or their class table cannot be used; ``read`` if a sample cannot.
    """

    def __init__(self, config: DataConfig, split: str, classes: ClassTable | None = None) -> None:
        self.cache, self.listed = cache_of(config), shards_of(config, split)
        self.classes = shard_classes(config, split) if classes is None else classes
        self.endings = Endings(config.shard_picture.lower(), config.shard_mask.lower())
        self.counts = _counted(self.listed, self.cache)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._mix = config.shard_mix
        self._reader = MaskReader.of(config, self.classes)
        self._indices: dict[int, ShardIndex] = {}
        self._lock = threading.Lock()
        self._ahead: set[tuple[int, int]] = set()

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k != "_lock"}
        return kept | {"_indices": {}, "_ahead": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def names(self) -> Sequence[str]:
        """Shard and key of each sample; reads the headers of those shards only that are asked for."""
        return _Names(self)

    def locate(self, index: int) -> tuple[ShardIndex, int]:
        """Return the shard that holds a sample, and its number there."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._index(shard), index - int(self._starts[shard])

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return picture and training ids of a sample, both upright and of one size."""
        shard, number = self.locate(index)
        try:
            files = shard.read(number)
        except FileNotFoundError:  # fetched, and deleted since to make room
            with self._lock:
                self._indices.clear()
            shard, number = self.locate(index)
            files = shard.read(number)
        names = shard.members(number)
        with named(names[0]):
            image = read_image(names[0], self._reader.max_pixels, files[0])
        with named(names[1]):
            label = self._reader.read(Path(names[1]), files[1])
        if image.shape[:2] != label.shape[:2]:
            raise FaultError(size_fault(names, image.shape, label.shape))
        return image, label

    def at(self, seed: int, epoch: int, place: int) -> int:
        """Return which sample stands at a place of an epoch; those next to it are fetched meanwhile."""
        group, start = _group_of(self.counts, self._mix, seed, epoch, place)
        self._fetch_ahead(seed, epoch, group)
        return int(_group_order(self.counts, self._mix, seed, epoch, group)[place - start])

    def indices(self) -> Iterator[ShardIndex]:
        """Yield what each shard holds, one after another."""
        for shard in range(len(self.listed.shards)):
            yield self._index(shard)

    def _index(self, shard: int) -> ShardIndex:
        with self._lock:
            if shard in self._indices:
                self._indices[shard] = self._indices.pop(shard)  # the last used stands last
                return self._indices[shard]
        shown = self.listed.shards[shard]
        index = read_index(shown, self.cache.local(shown, self.listed.sizes[shard]), self.endings)
        if len(index) != self.counts[shard]:
            rule = f"shard must hold {self.counts[shard]} samples as its index says, got {len(index)}"
            raise FaultError(Fault(shown, rule, "fetch it again, or write index and shards again"))
        with self._lock:
            self._indices[shard] = index
            while len(self._indices) > 2 * self._mix + 2:
                self._indices.pop(next(iter(self._indices)))
        return index

    def _fetch_ahead(self, seed: int, epoch: int, group: int) -> None:
        """Fetch this group's shards and the next one's beside the training, in the order that they are needed."""
        if (epoch, group) in self._ahead or not any(map(is_address, self.listed.shards)):
            return
        self._ahead.add((epoch, group))
        order = _shard_order(seed, epoch, len(self.counts)).tolist()
        coming = order[group * self._mix : (group + 2) * self._mix]
        if group + 1 >= -(-len(order) // self._mix):
            coming += _shard_order(seed, epoch + 1, len(self.counts)).tolist()[: self._mix]

        def fetch() -> None:
            for shard in coming:
                try:
                    self.cache.local(self.listed.shards[shard], self.listed.sizes[shard])
                except SetrFastError:  # who reads it meets the same, and says so
                    return

        threading.Thread(target=fetch, name="shards", daemon=True).start()


class _Names(Sequence[str]):
    def __init__(self, source: ShardSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        shard, number = self.source.locate(index % len(self))
        return shard.name(number)


def cache_of(config: DataConfig) -> Cache:
    """Return where fetched shards are kept."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "setr_fast" / "shards"
    return Cache(config.shard_cache or usual, int(config.shard_cache_gib * 2**30))


def shards_of(config: DataConfig, split: str) -> ShardList:
    """Return the shards of a split."""
    assert config.shards is not None
    if config.val_shards is not None and split == config.val_split:
        return expand(config.val_shards, split, cache_of(config))
    one_split = config.shards.endswith(".json") or ".tar" in config.shards.rpartition("/")[2]
    if one_split and split != config.train_split:
        rule = f"must be given for split '{split}' where --data.shards names one split's, got none"
        raise ConfigError(f"data.val_shards: {rule}; give the pattern or index of its shards")
    return expand(config.shards, split, cache_of(config))


def stated_shard_classes(config: DataConfig, split: str) -> ClassTable | None:
    """Return the classes that a class table states, or ``num_classes``; nothing if they have to be counted."""
    table = config.classes or class_table(shards_of(config, split).base, cache_of(config))
    if table is not None:
        classes = read_class_table(table)
        if config.num_classes not in (None, classes.num_classes):
            raise ConfigError(
                f"data.num_classes: must agree with {table}, which has {classes.num_classes} classes, "
                f"got {config.num_classes}; leave data.num_classes out"
            )
        return classes
    return None if config.num_classes is None else ClassTable.numbered(config.num_classes)


def shard_classes(config: DataConfig, split: str) -> ClassTable:
    """Return the classes of shards.

    Raises: FaultError where nothing states them: to count them, all shards would have to be read first.
    """
    classes = stated_shard_classes(config, split)
    if classes is None:
        raise FaultError(no_classes(shards_of(config, split).base))
    return classes


def no_classes(base: str) -> Fault:
    """Return the fault of shards whose classes nothing states."""
    rule = "shards must come with their classes, got no classes.csv beside them"
    return Fault(base, rule, "add it, or set --data.classes or --data.num-classes")


@contextmanager
def named(member: str) -> Iterator[None]:
    """Have faults name a shard's member as it is: an address is no path."""
    try:
        yield
    except FaultError as error:
        raise FaultError(replace(error.fault, path=member)) from None


def size_fault(members: tuple[str, str], image: Sequence[int], label: Sequence[int]) -> Fault:
    """Return the fault of a mask that differs in upright (height, width) from its picture."""
    rule = f"mask must be as large as its picture {members[0]}, {image[1]} x {image[0]} seen upright, "
    remedy = "export the mask again at the size of the upright picture"
    return Fault(members[1], f"{rule}got {label[1]} x {label[0]}", remedy)


def _counted(listed: ShardList, cache: Cache) -> tuple[int, ...]:
    """Return the number of samples of each shard; those that no index states are fetched and their headers read."""

    def count(shard: int) -> int:
        shown = listed.shards[shard]
        return count_samples(shown, cache.local(shown, listed.sizes[shard]))

    unknown = [shard for shard, number in enumerate(listed.counts) if number is None]
    if len(unknown) > 8:
        logger.info("%d shards without an index are read once to count their samples", len(unknown))
    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(unknown, pool.map(count, unknown), strict=True))
    counts = tuple(found[shard] if number is None else number for shard, number in enumerate(listed.counts))
    if not sum(counts):
        raise FaultError(Fault(listed.base, "shards must hold at least one sample, got none", "check the pattern"))
    return counts


@functools.lru_cache(maxsize=4)
def _shard_order(seed: int, epoch: int, shards: int) -> NDArray[np.intp]:
    return np.argsort(philox(seed, "shards", epoch).random_raw(shards), kind="stable")


@functools.lru_cache(maxsize=4)
def _group_ends(counts: tuple[int, ...], mix: int, seed: int, epoch: int) -> list[int]:
    """Return the place in the epoch that each group of shards ends before."""
    order = _shard_order(seed, epoch, len(counts)).tolist()
    sizes = [sum(counts[shard] for shard in order[first : first + mix]) for first in range(0, len(order), mix)]
    return list(itertools.accumulate(sizes))


def _group_of(counts: tuple[int, ...], mix: int, seed: int, epoch: int, place: int) -> tuple[int, int]:
    """Return the group that a place of an epoch falls into, and the place where it starts."""
    ends = _group_ends(counts, mix, seed, epoch)
    group = int(np.searchsorted(ends, place, side="right"))
    return group, ends[group - 1] if group else 0


@functools.lru_cache(maxsize=4)
def _group_order(counts: tuple[int, ...], mix: int, seed: int, epoch: int, group: int) -> NDArray[np.intp]:
    """Return the samples of a group in the order that they are taken."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    shards = _shard_order(seed, epoch, len(counts))[group * mix : (group + 1) * mix]
    samples = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in shards])
    return samples[np.argsort(philox(seed, "shard group", epoch, group).random_raw(len(samples)), kind="stable")]
