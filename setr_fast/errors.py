"""What goes wrong, and the exit code each kind of failure ends a command with.

Wording, everywhere: ``<where>: <what> must <rule>, got <value>; <what to do>`` on one line.
"""

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_ENVIRONMENT = 4
EXIT_DIVERGED = 5
EXIT_RESUME = 75  # EX_TEMPFAIL of sysexits.h: state is saved, start the same run again with --resume
EXIT_LOST = 76  # a process of the run is gone; the newest checkpoint is untouched, --resume goes on from it
EXIT_INTERRUPTED = 130


class SetrFastError(Exception):
    """A failure with a cause outside this package, explained in one line."""

    exit_code = 1


class ConfigError(SetrFastError, ValueError):
    """An option, a config file or a model name is not what it must be."""

    exit_code = EXIT_USAGE


class ShapeError(SetrFastError, ValueError):
    """A tensor argument has a shape or dtype that the function does not take."""

    exit_code = EXIT_USAGE


class DataError(SetrFastError, ValueError):
    """A file of the data set (picture, mask, list, class table) cannot be used."""

    exit_code = EXIT_DATA


class CheckpointError(SetrFastError, ValueError):
    """A checkpoint is missing, cut off, or does not fit."""

    exit_code = EXIT_DATA


class DivergedError(SetrFastError, ArithmeticError):
    """Training ran into a loss that is not a number."""

    exit_code = EXIT_DIVERGED


class BackendError(SetrFastError, RuntimeError):
    """A backend that was asked for cannot serve here: device, dtype, shape or build."""

    exit_code = EXIT_ENVIRONMENT
