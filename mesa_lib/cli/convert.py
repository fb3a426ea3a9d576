"""`python -m mesa_lib convert weights.pth`."""

import argparse
from pathlib import Path

from mesa_lib.store import conversion


def add(commands) -> None:
    """Add the command and its arguments to the subparsers of the program."""
    command = commands.add_parser("convert", help="turn a pickle of weights into a safetensors file")
    command.add_argument("file", help="weights that torch.save wrote, or a dict that holds them")
    command.add_argument("--out", type=Path, help="the new file (default: beside the old one, ending in .safetensors)")
    command.add_argument("--key", default="", help="the dict to take, where there are several: ema.model")
    command.set_defaults(function=convert)


def convert(a: argparse.Namespace) -> int:
    """Convert the file and print what was taken."""
    print(conversion.convert(a.file, a.out, a.key).text())
    return 0
