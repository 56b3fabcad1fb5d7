"""``python -m setr_fast.train``: the same as ``setr-fast train``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
