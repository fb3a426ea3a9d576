"""`python -m mesa_lib`: the command line, see `mesa_lib.cli.main`."""

import sys

if __name__ == "__main__":
    try:
        from mesa_lib.cli.main import main
    except KeyboardInterrupt:  # importing PyTorch takes seconds
        print("mesa: stopped before anything was done", file=sys.stderr)
        sys.exit(130)
    sys.exit(main())
