"""``python -m setr_fast``: the same as ``setr-fast``."""

import sys

from setr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
