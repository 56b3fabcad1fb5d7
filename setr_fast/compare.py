"""``python -m setr_fast.compare``: the same as ``setr-fast compare``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
