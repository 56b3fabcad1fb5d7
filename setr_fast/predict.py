"""``python -m setr_fast.predict``: the same as ``setr-fast predict``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
