"""What `compare` does once its arguments are read."""

from __future__ import annotations

import json
from pathlib import Path

from setr_fast.files import atomic_write, cannot_write, place_for_file
from setr_fast.metrics.compare import compare_files
from setr_fast.metrics.options import RESAMPLES, check_resamples
from setr_fast.metrics.table import compare_table


def compare_command(
    first: Path, second: Path, *, force: bool = False, out: Path | None = None, resamples: int = RESAMPLES
) -> None:
    """Print the comparison of two result files, and write it as JSON where ``out`` is given.

    Raises: DataError for a file that is no result; ConfigError for two that must not be compared;
    BackendError if ``out`` cannot be written.
    """
    check_resamples(resamples)
    if out is not None:
        place_for_file(out, "out")
    comparison = compare_files(first, second, force=force, resamples=resamples)
    print(compare_table(comparison))
    if out is not None:
        try:
            atomic_write(out, json.dumps(comparison.as_dict(), indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise cannot_write("out", out, error) from None
        print(f"written to {out}")
