"""``python -m setr_fast.convert``: the same as ``setr-fast convert``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
