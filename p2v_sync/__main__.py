"""``python -m p2v_sync``: the command line."""

import sys

from p2v_sync.cli import main

if __name__ == "__main__":
    sys.exit(main())
