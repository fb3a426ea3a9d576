"""The command line: `python -m mesa_lib run params/digits.yaml -p trigger=bw:16`."""

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mesa_lib import __version__
from mesa_lib import device as devices
from mesa_lib.cli import convert, play, run, scan, sweep
from mesa_lib.experiments.notebooks import SeriesFailed

#: what a command ends with when a signal stops it, as shells have it: 128 + the signal's number
STOPPED_BY_SIGINT, STOPPED_BY_SIGTERM = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: the command ends as it does after Ctrl-C."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; errors that a user can mend are one message on stderr."""
    a = build_parser().parse_args(arguments)
    try:
        with stop_signals_heard():
            devices.keep_memory()
            return a.function(a)
    except (ValueError, OSError, FloatingPointError, SeriesFailed) as error:
        print(f"mesa: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("mesa: stopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return STOPPED_BY_SIGTERM if isinstance(stop, Terminated) else STOPPED_BY_SIGINT


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `function`, which takes the arguments and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mesa_lib", description=__doc__)
    parser.add_argument("--version", action="version", version=f"mesa {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    run.add(commands)
    sweep.add(commands)
    scan.add(commands)
    convert.add(commands)
    play.add(commands)
    commands.choices["scan"].set_defaults(function=scan.main)
    return parser


@contextmanager
def stop_signals_heard() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt and SIGTERM `Terminated`, whatever this process inherited.

    A shell that starts a command in the background has it ignore SIGINT, as some CI systems do: without this, a sweep
    would run on through every Ctrl-C. Without effect outside the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number, frame):
        raise Terminated

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
