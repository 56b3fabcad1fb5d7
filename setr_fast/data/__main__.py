"""``python -m setr_fast.data``: the same as ``setr-fast data``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
