"""``python -m setr_fast.eval``: the same as ``setr-fast eval``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
