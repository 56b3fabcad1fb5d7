"""``setr-fast data``: check and list."""

from __future__ import annotations

from dataclasses import dataclass, field

from setr_fast.cli._parse import parse
from setr_fast.data.options import DataConfig
from setr_fast.errors import EXIT_OK, EXIT_USAGE, ConfigError


@dataclass(frozen=True)
class CheckArguments:
    """Look at every file of a data set and report all faults, each with its remedy; exit code 3 if there is any."""

    data: DataConfig = field(default_factory=DataConfig)


def run(argv: list[str]) -> int:
    if argv and argv[0] == "list":
        from setr_fast.data.layouts import describe_layouts

        print(describe_layouts())
        return EXIT_OK
    if not argv or argv[0] in ("-h", "--help") or argv[0] != "check":
        print("usage: setr-fast data check DIR [--data.classes FILE ...]  |  setr-fast data list")
        return EXIT_OK if argv and argv[0] in ("-h", "--help") else EXIT_USAGE
    rest = argv[1:]
    if rest and not rest[0].startswith("-"):
        rest = ["--data.root", *rest]
    config = parse(CheckArguments, rest, "data check").data
    if config.root is None:
        raise ConfigError("data check: needs the folder to look at; see --help")
    from setr_fast.data.check import check_command

    return check_command(config)
