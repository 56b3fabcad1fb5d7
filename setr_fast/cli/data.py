"""``setr-fast data``: check, weights, prepare, coco, shards and list."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from setr_fast.cli._parse import parse
from setr_fast.data.options import DataConfig
from setr_fast.errors import EXIT_OK, EXIT_USAGE, ConfigError
from setr_fast.files import make_folder


@dataclass(frozen=True)
class CheckArguments:
    """Look at every file of a data set and report all faults, each with its remedy; exit code 3 if there is any."""

    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class WeightsArguments:
    """Count the classes of a split, and print loss weights for them: median-frequency and ENet."""

    data: DataConfig = field(default_factory=DataConfig)
    split: str | None = None
    """Split that is counted; none: the one to train on."""


@dataclass(frozen=True)
class PrepareArguments:
    """Do what a data set's own instructions ask for before it can be read; what is there already stays.

    cityscapes_train_ids: training ids beside the label ids. pascal_context: 60 classes out of the 459 categories.
    pascal_voc_aug: VOC and SBD merged. coco_stuff_10k: .mat to .png. synapse: slices of the CT volumes."""

    name: tyro.conf.Positional[str]
    """Data set."""
    root: tyro.conf.Positional[Path]
    """Folder that its archives were unpacked in."""


@dataclass(frozen=True)
class CocoArguments:
    """Write masks of class ids for a COCO annotation file: polygons and run lengths, rasterised; and classes.csv."""

    annotations: tyro.conf.Positional[Path]
    """The .json file, with images, annotations and categories."""
    out: tyro.conf.Positional[Path]
    """Folder for the masks."""


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


USAGE = """\
usage: setr-fast data check DIR [--data.classes FILE ...]     every fault of a data set
       setr-fast data weights DIR [--split train ...]         class frequencies, and loss weights made of them
       setr-fast data prepare NAME DIR                        what a data set's own instructions ask for
       setr-fast data coco ANNOTATIONS.json OUT               masks out of polygons and run lengths
       setr-fast data shards DIR OUT [--mib 512 ...]          WebDataset shards of a folder
       setr-fast data list                                    layouts and data sets that are read"""


def run(argv: list[str]) -> int:
    verbs = {"weights": _weights, "prepare": _prepare, "coco": _coco, "shards": _shards}
    if argv and argv[0] in verbs:
        return verbs[argv[0]](argv[1:])
    if argv and argv[0] == "list":
        from setr_fast.data.layouts.splits import describe_layouts

        print(describe_layouts())
        return EXIT_OK
    if not argv or argv[0] in ("-h", "--help") or argv[0] != "check":
        print(USAGE)
        return EXIT_OK if argv and argv[0] in ("-h", "--help") else EXIT_USAGE
    config = parse(CheckArguments, _with_root(argv[1:]), "data check").data
    if config.root is None and config.shards is None:
        raise ConfigError("data check: needs the folder to look at, or --data.shards; see --help")
    from setr_fast.data.checks.check import check_command

    return check_command(config)


def _with_root(argv: list[str]) -> list[str]:
    return ["--data.root", *argv] if argv and not argv[0].startswith("-") else argv


def _weights(argv: list[str]) -> int:
    a = parse(WeightsArguments, _with_root(argv), "data weights")
    from setr_fast.data.frequencies import frequency_table, split_frequencies

    print("\n".join(frequency_table(split_frequencies(a.data, a.split))))
    return EXIT_OK


def _prepare(argv: list[str]) -> int:
    a = parse(PrepareArguments, argv, "data prepare")
    from setr_fast.data.checks.check import progress_bar
    from setr_fast.data.prepare.steps import prepare

    with progress_bar("preparing") as show:
        done = prepare(a.name, a.root, show)
    print(done)
    return EXIT_OK


def _coco(argv: list[str]) -> int:
    a = parse(CocoArguments, argv, "data coco")
    from setr_fast.data.checks.check import progress_bar
    from setr_fast.data.prepare.coco import coco_jobs
    from setr_fast.data.prepare.steps import carry_out

    jobs = list(coco_jobs(a.annotations, a.out))
    make_folder(a.out, "out")
    with progress_bar("drawing") as show:
        done = carry_out(jobs, show)
    print(done)
    return EXIT_OK


def _shards(argv: list[str]) -> int:
    plain = [place for place, text in enumerate(argv) if not text.startswith("-")]
    if plain[:2] == [0, 1]:
        argv = ["--data.root", *argv]
    arguments = parse(ShardsArguments, argv, "data shards")
    if arguments.mib < 1:
        raise ConfigError(f"data shards: --mib must be 1 or more, got {arguments.mib}")
    from setr_fast.data.shards.write import write_shards

    config = arguments.data
    for line in write_shards(config, arguments.out, arguments.splits, arguments.mib * 2**20):
        print(line, flush=True)
    return EXIT_OK
