"""``setr-fast data``: check, shards and list."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from setr_fast.cli._parse import parse
from setr_fast.data.options import DataConfig
from setr_fast.errors import EXIT_OK, EXIT_USAGE, ConfigError


@dataclass(frozen=True)
class CheckArguments:
    """Look at every file of a data set and report all faults, each with its remedy; exit code 3 if there is any."""

    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class ShardsArguments:
    """Write a data set as WebDataset shards: pictures as they are, masks as training ids, classes.csv, and an index."""

    out: tyro.conf.Positional[Path]
    """Folder for the shards, train-000000.tar and so on; --data.shards takes it."""
    data: DataConfig = field(default_factory=DataConfig)
    mib: int = 512
    """Largest size of a shard."""
    splits: tuple[str, ...] = ()
    """Splits to write; none: those to train and to validate on."""


def run(argv: list[str]) -> int:
    if argv and argv[0] == "shards":
        return _shards(argv[1:])
    if argv and argv[0] == "list":
        from setr_fast.data.layouts import describe_layouts

        print(describe_layouts())
        return EXIT_OK
    if not argv or argv[0] in ("-h", "--help") or argv[0] != "check":
        print("usage: setr-fast data check DIR [--data.classes FILE ...]")
        print("       setr-fast data shards DIR OUT [--mib 512 ...]")
        print("       setr-fast data list")
        return EXIT_OK if argv and argv[0] in ("-h", "--help") else EXIT_USAGE
    rest = argv[1:]
    if rest and not rest[0].startswith("-"):
        rest = ["--data.root", *rest]
    config = parse(CheckArguments, rest, "data check").data
    if config.root is None and config.shards is None:
        raise ConfigError("data check: needs the folder to look at, or --data.shards; see --help")
    from setr_fast.data.check import check_command

    return check_command(config)


def _shards(argv: list[str]) -> int:
    plain = [place for place, text in enumerate(argv) if not text.startswith("-")]
    if plain[:2] == [0, 1]:
        argv = ["--data.root", *argv]
    arguments = parse(ShardsArguments, argv, "data shards")
    if arguments.mib < 1:
        raise ConfigError(f"data shards: --mib must be 1 or more, got {arguments.mib}")
    from setr_fast.data.shard_write import write_shards

    config = arguments.data
    for line in write_shards(config, arguments.out, arguments.splits, arguments.mib * 2**20):
        print(line, flush=True)
    return EXIT_OK
