"""``python -m setr_fast.plan``: the same as ``setr-fast plan``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
