"""Verbs that only print: ``setr-fast models``, ``recipes [NAME]``, ``doctor``."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

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


@dataclass(frozen=True)
class RecipesArguments:
    """List the recipes, or show one: its file, and what it makes of every group of parameters."""

    name: tyro.conf.Positional[str | None] = None
    """Recipe to show; none: list all."""


def recipes(argv: list[str]) -> int:
    name = parse(RecipesArguments, argv, "recipes").name
    from setr_fast.config import Config, read_config, recipe_lines, recipe_path

    if name is None:
        print("\n".join(recipe_lines()))
        return EXIT_OK
    path = recipe_path(name)
    from setr_fast.train.parameter_table import parameter_table

    print(path.read_text())
    print("\n".join(parameter_table(read_config(path, Config()))))
    return EXIT_OK


def doctor(argv: list[str]) -> int:
    parse(NoArguments, argv, "doctor")
    from setr_fast.report import doctor as describe

    print(describe())
    return EXIT_OK
