"""``python -m setr_fast.export``: the same as ``setr-fast export``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
