"""``python -m setr_fast.doctor``: the same as ``setr-fast doctor``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
