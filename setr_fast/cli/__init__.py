"""The command line: verbs and exit codes. What a verb takes is in the module of its name, imported when it runs.

tyro is used in this room alone, so that another parser could take its place.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from setr_fast.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, SetrFastError
from setr_fast.files import NO_FAULT_OF_OURS, TEMPORARY, system_error

# name: (module and function in this room, line of the overview)
VERBS: dict[str, tuple[str, str]] = {
    "train": ("train:run", "train a model (no argument: a small SETR-PUP on built-in scenes)"),
    "eval": ("eval:run", "score a model on pictures with masks"),
    "compare": ("compare:run", "A.json B.json: what changed between two results, and whether it is more than chance"),
    "predict": ("predict:run", "write class maps and overlays for pictures of any size"),
    "consolidate": ("consolidate:run", "one model folder from a sharded checkpoint"),
    "plan": ("plan:run", "memory by part and step time of a training, before it is run"),
    "convert": ("convert:run", "SRC DST: a checkpoint of another code base into ours, or ours into theirs"),
    "export": ("export:run", "torch_export, aoti, onnx or cpp: one program from bytes to class map, with a receipt"),
    "data": ("data:run", "check DIR: find every fault of a data set; weights, prepare, coco, list: see data --help"),
    "models": ("lists:models", "names that --model.name takes"),
    "recipes": ("lists:recipes", "names that --recipe takes"),
    "bench": ("bench:run", "time the backends of each op and say which this machine should use"),
    "doctor": ("lists:doctor", "what was compiled, and which backend each op uses on this machine"),
}


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
    gc.set_threshold(50_000)  # importing torch makes hundreds of thousands of objects: 5 collections instead of 400
    try:
        module, _, function = VERBS[verb][0].partition(":")
        return getattr(import_module(f"setr_fast.cli.{module}"), function)(rest)
    except SetrFastError as error:
        print(f"setr-fast {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"setr-fast {verb}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `setr-fast ... | head`
        sys.stderr.close()
        return EXIT_OK
    except Exception as error:
        if (told := _of_the_system(error)) is None:
            raise
        print(f"setr-fast {verb}: {told}", file=sys.stderr)
        return EXIT_ENVIRONMENT


def _of_the_system(error: Exception) -> str | None:
    """Return one line on a disk, a permission or a limit that ended a verb; nothing for any other error.

    What is known to be an input's or an output's fault has been said better where it happened.
    """
    if not isinstance(error, (OSError, RuntimeError)) and type(error).__name__ != "SafetensorError":
        return None
    number, place = system_error(error)
    if number not in NO_FAULT_OF_OURS:
        return None
    if os.path.basename(place).startswith(TEMPORARY):
        place = os.path.dirname(place)
    what = place or "a file"
    return f"{what}: must be readable and writable, got '{os.strerror(number)}'; see to the disk or the permissions"


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
        "5 diverged, 75 told to stop and saved, 76 a process was lost, 130 stopped by Ctrl-C (train --resume goes on",
        "after the last three).",
    ]
    return "\n".join(lines)
