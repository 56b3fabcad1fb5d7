"""The command line: verbs, their arguments (tyro) and exit codes. Nothing heavy is imported before a verb runs.

tyro is used in this file alone, so that another parser could take its place.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from setr_fast.checkpoints.options import ConvertConfig
from setr_fast.config import Config, read_config, recipe_path
from setr_fast.data.options import DataConfig
from setr_fast.engine.options import InferenceConfig
from setr_fast.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, ConfigError, SetrFastError
from setr_fast.metrics.options import RESAMPLES, MetricsConfig
from setr_fast.train.options import ParallelConfig

T = TypeVar("T")
LISTS = ("--scales", "--inference.scales", "--metrics")  # the only options that also take 0.5,1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the process's exit code; a known failure prints one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return EXIT_OK if arguments else EXIT_USAGE
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        from setr_fast import __version__

        print(__version__)
        return EXIT_OK
    if verb not in VERBS:
        print(f"setr-fast: no verb {verb!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return EXIT_USAGE
    _speak()
    try:
        return VERBS[verb][0](rest)
    except SetrFastError as error:
        print(f"setr-fast {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"setr-fast {verb}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `setr-fast ... | head`
        sys.stderr.close()
        return EXIT_OK


# ---- train ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainArguments(Config):
    """Train a model; with no argument, a small SETR-PUP on built-in scenes."""

    recipe: str | None = None
    """Named configuration laid over the defaults."""
    config: Path | None = None
    """TOML file laid over the recipe; flags go over both."""
    parallel: Annotated[ParallelConfig, tyro.conf.arg(name="fsdp")] = field(default_factory=ParallelConfig)


def _train(argv: list[str]) -> int:
    arguments = _parse(TrainArguments, argv, "train", default=_train_defaults(argv))
    values = {item.name: getattr(arguments, item.name) for item in dataclasses.fields(Config)}
    from setr_fast.train.launch import run

    return run(Config(**values), argv)


def _train_defaults(argv: list[str]) -> TrainArguments:
    """Lay recipe and file (or, on --resume, the run's own configuration) over the defaults."""
    base = Config()
    run_dir, config = _given(argv, "run-dir"), _given(argv, "config")
    if recipe := _given(argv, "recipe"):
        base = read_config(recipe_path(recipe), base)
    if config:
        base = read_config(Path(config), base)
    elif "--resume" in argv and run_dir and (Path(run_dir) / "config.toml").is_file():
        base = read_config(Path(run_dir) / "config.toml", base)
    return TrainArguments(**{item.name: getattr(base, item.name) for item in dataclasses.fields(Config)})


def _given(argv: list[str], name: str) -> str | None:
    """Return an option's value before the arguments are parsed: it decides what their defaults are."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument(f"--{name}", f"--{name.replace('-', '_')}", dest="value")
    try:
        return finder.parse_known_args(argv)[0].value
    except SystemExit:  # the value is missing: the real parser says so better
        return None


# ---- eval and predict ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalArguments:
    """Score a model on a folder of pictures and masks."""

    checkpoint: Path
    """Folder of a saved model, or a run folder (its best model)."""
    data: DataConfig = field(default_factory=DataConfig)
    inference: Annotated[InferenceConfig, tyro.conf.arg(name="")] = field(default_factory=InferenceConfig)
    scoring: Annotated[MetricsConfig, tyro.conf.arg(name="")] = field(default_factory=MetricsConfig)
    split: str = "val"
    """Split that is scored."""
    recipe: str | None = None
    """Recipe whose data set, sizes and windows are used instead of those that the model was trained with."""
    device: str | None = None
    """cpu, cuda or cuda:N; none: the first GPU, else the CPU."""
    out: Path | None = None
    """File for the result as JSON."""


def _eval(argv: list[str]) -> int:
    run = _run_of(_given(argv, "checkpoint"))
    if recipe := _given(argv, "recipe"):
        run = read_config(recipe_path(recipe), Config())
    default = EvalArguments(tyro.MISSING, run.data, run.inference, MetricsConfig(), split=run.data.val_split)
    a = _parse(EvalArguments, argv, "eval", default=default)
    from setr_fast.engine.commands import eval_command

    split = a.split if _given(argv, "split") else a.data.val_split  # a known set may call it otherwise
    eval_command(a.checkpoint, a.data, a.inference, a.scoring, split=split, out=a.out, device=a.device)
    return EXIT_OK


def _run_of(checkpoint: str | None) -> Config:
    """Return the configuration of the run that a checkpoint belongs to, so that it is used as it was validated."""
    place = Path(checkpoint or "")
    for folder in (place, *list(place.absolute().parents)[:2]):  # the run folder, best/, checkpoints/step_*/
        if checkpoint and (folder / "config.toml").is_file():
            return read_config(folder / "config.toml", Config())
    return Config()


@dataclass(frozen=True)
class PredictArguments:
    """Write a class-index PNG and an overlay for each picture, at the picture's own size."""

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, folders of pictures, videos."""
    checkpoint: Path
    """Folder of a saved model, or a run folder (its best model)."""
    out: Path
    """Folder for the results."""
    inference: Annotated[InferenceConfig, tyro.conf.arg(name="")] = field(default_factory=InferenceConfig)
    device: str | None = None
    """cpu, cuda or cuda:N; none: the first GPU, else the CPU."""


def _predict(argv: list[str]) -> int:
    run = _run_of(_given(argv, "checkpoint"))
    default = PredictArguments(tyro.MISSING, tyro.MISSING, tyro.MISSING, run.inference)
    a = _parse(PredictArguments, argv, "predict", default=default)
    if not a.inputs:
        raise ConfigError("predict: needs at least one picture, folder or video; see --help")
    from setr_fast.engine.commands import predict_command

    predict_command(a.checkpoint, list(a.inputs), a.out, a.inference, device=a.device)
    return EXIT_OK


@dataclass(frozen=True)
class CompareArguments:
    """How the second of two results of `eval` differs from the first, and whether that is more than the choice of
    pictures explains. Exit code 0 whatever the difference; 2: other data, classes or rules; 3: no result file."""

    first: tyro.conf.Positional[Path]
    """Result that `eval --out` wrote."""
    second: tyro.conf.Positional[Path]
    """Result that is compared with it."""
    force: bool = False
    """Compare in spite of other data, classes or rules; then without paired intervals."""
    out: Path | None = None
    """File for the comparison as JSON."""
    bootstrap: int = RESAMPLES
    """Resamples of the pictures behind the intervals of the differences; 0: none."""


def _compare(argv: list[str]) -> int:
    a = _parse(CompareArguments, argv, "compare")
    from setr_fast.metrics.commands import compare_command

    compare_command(a.first, a.second, force=a.force, out=a.out, resamples=a.bootstrap)
    return EXIT_OK


@dataclass(frozen=True)
class ConsolidateArguments:
    """Turn a sharded checkpoint of a run into one model folder."""

    checkpoint: tyro.conf.Positional[Path]
    """Run folder (its newest checkpoint), or one of its checkpoints/step_*."""
    out: Path
    """Folder for config.json and model.safetensors."""
    weights: Literal["best", "average", "raw"] = "best"
    """best: averaged weights where the run has them, else raw ones."""


def _consolidate(argv: list[str]) -> int:
    a = _parse(ConsolidateArguments, argv, "consolidate")
    from setr_fast.train.consolidate import consolidate

    print(f"{consolidate(a.checkpoint, a.out, a.weights)} -> {a.out}")
    return EXIT_OK


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


def _plan(argv: list[str]) -> int:
    a = _parse(PlanArguments, argv, "plan")
    if len(a.crop) > 2 or min(a.crop, default=0) < 1 or a.batch < 1:
        raise ConfigError(f"plan: crop and batch must be positive, crop of one or two sides, got {a.crop}, {a.batch}")
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
        config=config,
    )
    return EXIT_OK if fitting else EXIT_ENVIRONMENT


# ---- convert -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvertArguments:
    """Read a checkpoint of any known code base and write it as another's, with a certificate of every key."""

    source: tyro.conf.Positional[Path]
    """Weights file, or a folder with one."""
    result: tyro.conf.Positional[Path]
    """Folder to write (native), or file (any other)."""
    config: Annotated[ConvertConfig, tyro.conf.arg(name="")] = field(default_factory=ConvertConfig)


def _convert(argv: list[str]) -> int:
    a = _parse(ConvertArguments, argv, "convert")
    from setr_fast.checkpoints.convert import convert_command

    convert_command(a.source, a.result, a.config)
    return EXIT_OK


# ---- data, models, doctor ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckArguments:
    """Look at every file of a data set and report all faults, each with its remedy; exit code 3 if there is any."""

    data: DataConfig = field(default_factory=DataConfig)


def _data(argv: list[str]) -> int:
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
    config = _parse(CheckArguments, rest, "data check").data
    if config.root is None:
        raise ConfigError("data check: needs the folder to look at; see --help")
    from setr_fast.data.check import check_command

    return check_command(config)


@dataclass(frozen=True)
class NoArguments:
    """Takes no options."""


def _models(argv: list[str]) -> int:
    _parse(NoArguments, argv, "models")
    from setr_fast.models.catalog import list_models

    print("\n".join(list_models()))
    return EXIT_OK


def _recipes(argv: list[str]) -> int:
    _parse(NoArguments, argv, "recipes")
    from setr_fast.config import recipe_lines

    print("\n".join(recipe_lines()))
    return EXIT_OK


def _doctor(argv: list[str]) -> int:
    _parse(NoArguments, argv, "doctor")
    from setr_fast.report import doctor

    print(doctor())
    return EXIT_OK


VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (_train, "train a model (no argument: a small SETR-PUP on built-in scenes)"),
    "eval": (_eval, "score a model on pictures with masks"),
    "compare": (_compare, "A.json B.json: what changed between two results, and whether it is more than chance"),
    "predict": (_predict, "write class maps and overlays for pictures of any size"),
    "consolidate": (_consolidate, "one model folder from a sharded checkpoint"),
    "plan": (_plan, "memory by part and step time of a training, before it is run"),
    "convert": (_convert, "SRC DST: a checkpoint of another code base into ours, or ours into theirs"),
    "data": (_data, "check DIR: find every fault of a data set; list: layouts that are read"),
    "models": (_models, "names that --model.name takes"),
    "recipes": (_recipes, "names that --recipe takes"),
    "doctor": (_doctor, "what was compiled, and which backend each op uses on this machine"),
}


def _speak() -> None:
    """Show what the package logs (notices and warnings), one plain line each, on stderr."""
    logger = logging.getLogger("setr_fast")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("setr-fast: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _overview() -> str:
    lines = ["usage: setr-fast VERB [options]        (also: python -m setr_fast.VERB)", ""]
    lines += [f"  {name:11s} {text}" for name, (_, text) in VERBS.items()]
    lines += [
        "",
        "`setr-fast VERB --help` lists the options. Exit codes: 0 ok, 2 usage or config, 3 data, 4 environment,",
        "5 diverged, 75 told to stop and saved, 76 a process was lost (train --resume goes on after both).",
    ]
    return "\n".join(lines)


def _parse(kind: type[T], argv: list[str], verb: str, default: T | None = None) -> T:
    expanded: list[str] = []
    for argument in argv:
        if expanded and expanded[-1] in LISTS and "," in argument:
            expanded += argument.split(",")
        else:
            expanded.append(argument)
    if default is None:
        return tyro.cli(kind, args=expanded, prog=f"setr-fast {verb}")
    return tyro.cli(kind, args=expanded, prog=f"setr-fast {verb}", default=default)
