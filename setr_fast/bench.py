"""``python -m setr_fast.bench``: the same as ``setr-fast bench``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
