"""The entry point, also of ``python -m p2v_sync``."""

import signal
import sys

# Until the command line has handlers of its own Ctrl-C ends us in silence: the imports take a
# moment, and a traceback of them helps nobody.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from p2v_sync import cli  # noqa: E402 - behind the line above


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
