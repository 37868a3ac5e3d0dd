"""The program: `cpsim`, and `python -m cpsim`."""

import atexit
import gc
import os
import sys


def main() -> None:
    """Run the command line; what interrupts it while it is loaded is told as anywhere else."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own, which it chooses when loaded, grows
    atexit.register(gc.freeze)  # to look through all that is left takes a tenth of a second
    try:
        from cpsim.cli import main as run  # noqa: PLC0415 - slow enough to be interrupted

        run()
    except KeyboardInterrupt:
        sys.stderr.write("cpsim: interrupted\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
