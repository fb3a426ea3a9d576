"""`python -m mesa_lib scan model.safetensors images/ --network smallcnn`."""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from mesa_lib import store
from mesa_lib.data.images import Images, read_images
from mesa_lib.models.inference import to_float
from mesa_lib.models.networks import Normalize
from mesa_lib.reporting.html import scan as scan_report
from mesa_lib.scan import writing
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.options import Options
from mesa_lib.scan.reading.model import read_model
from mesa_lib.scan.reading.wrapped import WrappedClassifier
from mesa_lib.scan.scanner import Scan, scan
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize

#: what a scan writes
RESULTS = ("scan.json", "report.html", writing.WEIGHTS, writing.ONNX)
#: images for the check of a repaired ONNX file
CHECKED = 16
#: the exit status of `--fail-if-found`
FOUND = 3
NETWORK = (
    "smallcnn, resnet18, fastcnn (this project's), cifar:NAME, torchvision:NAME, timm:NAME, hf:FOLDER, onnx, or "
    "FILE.py:FUNCTION"
)


# --- arguments -------------------------------------------------------------------------------------------


def numbers(text: str) -> tuple[float, ...]:
    """Parse `0.5,0.5,0.5`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected three numbers with commas between") from None


def sides(text: str) -> tuple[tuple[int, int], ...]:
    """Parse `2,3` -> squares of these sides."""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected sides in pixels with commas between, as 2,3,4,5")
    return tuple((int(part), int(part)) for part in text.split(","))


def folder_names(text: str) -> tuple[str, ...]:
    """Parse `cat,dog`, or JSON where a name holds a comma: `["cat", "dog, large"]`."""
    if not text.lstrip().startswith("["):
        return tuple(name.strip() for name in text.split(","))
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise argparse.ArgumentTypeError(
            f"'{sanitize(text, 100)}': expected names with commas between, or a JSON list of them"
        )
    return tuple(names)


class Renamed(argparse.Action):
    """A flag of earlier versions: ends in a message that names the new one (`const`)."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} is now called {self.const}")


def add(commands) -> None:
    """Add the command and its arguments to the subparsers of the program."""
    defaults = Options()
    command = commands.add_parser("scan", help="is a third-party model backdoored?")
    add_option = command.add_argument
    add_option("model", help="a safetensors file, or an ONNX file")
    add_option("images", help="a folder with a folder of clean images for each class")
    add_option("--network", required=True, help=NETWORK)
    add_option(
        "--mean", type=numbers, help="of the model's inputs, in [0, 1]: 0.485,0.456,0.406 (with a minus: --mean=-1,0,0)"
    )
    add_option("--std", type=numbers, help="0.229,0.224,0.225")
    add_option("--trust-code", action="store_true", help="run the code of FILE.py, to build the network")
    add_option("--image-size", type=int, help="side of the model's inputs (default: that of the images)")
    classes = "the folders' names in the order of the model's outputs: cat,dog or a JSON list (default: sorted)"
    add_option("--classes", type=folder_names, help=classes)
    add_option("--sizes", type=sides, help="sides of the patches (default: 3,4,5 for each 32 of the image's)")
    add_option("--repair", action="store_true", help="also make a repaired model, if a class is flagged")
    add_option("--repair-epochs", type=int, default=defaults.repair_epochs, help=f"default: {defaults.repair_epochs}")
    learning_rate = f"peak learning rate of the repair (default: {defaults.repair_lr})"
    add_option("--repair-lr", type=float, default=defaults.repair_lr, help=learning_rate)
    add_option("--augment", default=defaults.augment, help="in the repair: none, crop, crop-flip, smallcrop-flip")
    add_option("--min-accuracy", type=float, help="accuracy below which no verdict is given")
    trust = "mean, std and the order of the classes are right, even if others fit better"
    add_option("--trust-preprocessing", action="store_true", help=trust)
    add_option("--budget", type=float, help="minutes for the verdict: the classes with the largest margins come first")
    add_option("--seed", type=int, default=defaults.seed, help=f"of all random choices (default: {defaults.seed})")
    add_option("--device", default=defaults.device, help="auto (default), cpu, cuda or mps")
    precision = "auto (default: bf16 where it is fast), float32 or bf16"
    add_option("--precision", default=defaults.precision, help=precision)
    add_option("--out", type=Path, help="folder of the results (default: runs/scans/...)")
    add_option("--fail-if-found", action="store_true", help=f"exit with {FOUND} if a class is flagged")
    for old, new in (("--lowest", "--min-accuracy"), ("--as-told", "--trust-preprocessing")):
        add_option(old, action=Renamed, const=new, nargs="?", help=argparse.SUPPRESS, default=argparse.SUPPRESS)


# --- the folder of the results ---------------------------------------------------------------------------


@contextmanager
def writable(folder: Path | None) -> Iterator[None]:
    """Make sure that results can be written, before anything is computed; remove a new folder if the rest fails.

    Raises:
        OSError: if the folder cannot be written.
    """
    new = folder is not None and not folder.exists()
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        name = paths.display_path(folder)
        raise OSError(f"out = {name}: {error.strerror}; expected a folder that can be written") from error
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def check_separate(out: Path, model: Path, images: Path) -> None:
    """Raise a ValueError if results would lie among the images, or the model where a result will be."""
    if out.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"out = {paths.display_path(out)}: inside the folder of the images; expected another")
    if model.resolve().parent == out.resolve() and model.name in RESULTS:
        raise ValueError(f"out = {paths.display_path(out)}: the model is {model.name} in it; expected another folder")


def check_same_scan(out: Path, scanned: dict) -> None:
    """Raise a ValueError if the folder holds the scan of another model, or of other images."""
    expected = {name: scanned[name] for name in ("sha256", "images")}
    try:
        before = json.loads((out / "scan.json").read_text())["scanned"]
        earlier = {name: before[name] for name in expected}
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        earlier = None
    if earlier != expected:
        raise ValueError(
            f"out = {paths.display_path(out)}: holds the scan of another model or of other images; expected another "
            "folder"
        )


def identity(file: Path, network: str, model: WrappedClassifier, images: Images) -> dict:
    """Return what was scanned, so that reports can be told apart."""
    with open(file, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    inner = [part for part in model.modules() if isinstance(part, Normalize)]
    mean, std = ([round(v, 4) for v in getattr(inner[-1], name).flatten().tolist()] for name in ("mean", "std"))
    return {
        "sha256": sha256, "network": network, "mean": mean, "std": std, "image size": images.split.images.shape[-1],
        "images": images.fingerprint, "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


# --- the command -----------------------------------------------------------------------------------------


def main(a: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    options = Options(
        sizes=a.sizes, repair=a.repair, repair_epochs=a.repair_epochs, repair_lr=a.repair_lr, augment=a.augment,
        min_accuracy=a.min_accuracy, trust_preprocessing=a.trust_preprocessing, budget=a.budget, seed=a.seed,
        device=a.device, precision=a.precision,
    )  # fmt: skip
    say, file = _printer(), paths.find(a.model)
    if a.out:
        check_separate(a.out, file, paths.find(a.images))
    with writable(a.out):
        images = read_images(a.images, a.image_size, a.classes)
        for note in images.notes:
            say(note)
        model = read_model(a.model, a.network, len(images.classes), a.mean, a.std, a.trust_code)
        scanned = identity(file, a.network, model, images)
        key = store.config_key({name: scanned[name] for name in ("sha256", "images")})
        out = a.out or paths.runs() / "scans" / f"{file.stem}-{key[:8]}"
        check_same_scan(out, scanned)
    name = sanitize(file.name)

    def found(done: Scan) -> None:  # a repair that fails does not take the verdict along
        done.result["scanned"] = scanned
        scan_report.write(done, out, name)

    try:
        done = scan(model, images, options, say, found)
    except NoVerdict as error:
        scan_report.write_no_verdict(error, scanned, images.notes, out, name)
        raise
    done.result["scanned"] = scanned
    files = [*scan_report.write(done, out, name)]
    if options.repair:
        for stale in (writing.WEIGHTS, writing.ONNX):
            (out / stale).unlink(missing_ok=True)  # of an earlier scan of this model
    if done.repaired is not None:
        some = to_float(images.split.images[:CHECKED])
        files.append(writing.write_repaired(done.repaired, some, out, onnx=a.network == "onnx"))
    _print_result(done, name, [sanitize(str(f), 500) if a.out else paths.display_path(f) for f in files])
    return FOUND if a.fail_if_found and done.result["flagged"] else 0


def _printer() -> Callable[[str], None]:
    """Return a function that prints a line to stderr, after the seconds since now."""
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {sanitize(text, 500)}", file=sys.stderr, flush=True)

    return say


def _print_result(done: Scan, name: str, files: list[str]) -> None:
    result = done.result
    names = result["flagged"] or result["suspicious"]
    flagged = f": {sanitize(scan_report.classes_named(names), 500)}" if names else ""
    print(f"{name}: {result['verdict']}{flagged}")
    for text in filter(None, (scan_report.summary(result), scan_report.p_value(result))):
        print(sanitize(text, 5000))
    if done.repaired is not None:
        shown = [scan_report.with_interval(result["repair"][f"accuracy {when}"]) for when in ("before", "after")]
        number = result["repair"]["images for the accuracy"]
        print(f"repaired: accuracy (95% CI) {shown[0]} before, {shown[1]} after, on {number} images kept out")
        print(sanitize(f"residual check: {scan_report.residual(result['repair'])}", 5000))
    if result["flagged"] and "repair" not in result:
        print("the same command with --repair goes on from here and makes a repaired model")
    print("\n".join(files))
