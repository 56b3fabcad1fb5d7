"""Verbs that only print: ``setr-fast models``, ``recipes``, ``doctor``."""

from __future__ import annotations

from dataclasses import dataclass

from setr_fast.cli._parse import parse
from setr_fast.errors import EXIT_OK


@dataclass(frozen=True)
class NoArguments:
    """Takes no options."""


def models(argv: list[str]) -> int:
    parse(NoArguments, argv, "models")
    from setr_fast.models.catalog import list_models

    print("\n".join(list_models()))
    return EXIT_OK


def recipes(argv: list[str]) -> int:
    parse(NoArguments, argv, "recipes")
    from setr_fast.config import recipe_lines

    print("\n".join(recipe_lines()))
    return EXIT_OK


def doctor(argv: list[str]) -> int:
    parse(NoArguments, argv, "doctor")
    from setr_fast.report import doctor as describe

    print(describe())
    return EXIT_OK
