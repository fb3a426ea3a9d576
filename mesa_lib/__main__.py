"""`python -m mesa_lib`: the command line, see `mesa_lib.cli.main`."""

import sys

from mesa_lib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
