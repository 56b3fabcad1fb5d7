"""``python -m setr_fast.consolidate``: the same as ``setr-fast consolidate``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["consolidate", *sys.argv[1:]]))
