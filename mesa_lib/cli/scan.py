"""`python -m mesa_lib scan model.safetensors images/ --network smallcnn`."""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from mesa_lib import store
from mesa_lib.models.networks import Normalize
from mesa_lib.reporting.html import scan as scan_report
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.options import Options
from mesa_lib.scan.reading import images as read_images
from mesa_lib.scan.reading import model as models
from mesa_lib.scan.scanner import scan
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize, sanitize_list

#: what a scan writes
RESULTS = ("scan.json", "report.html", "repaired.safetensors")


def numbers(text: str) -> tuple[float, ...]:
    """`0.5,0.5,0.5` -> three numbers"""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected three numbers with commas between") from None


def sides(text: str) -> tuple[tuple[int, int], ...]:
    """`2,3` -> squares of these sides"""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected sides in pixels with commas between, as 2,3,4,5")
    return tuple((int(part), int(part)) for part in text.split(","))


def folder_names(text: str) -> tuple[str, ...]:
    """`cat,dog`, or as JSON where a name holds a comma: `["cat", "dog, large"]`"""
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


@contextmanager
def writable(folder: Path | None) -> Iterator[None]:
    """OSError, before anything is computed, if no result could be put there; a new folder goes if the rest fails."""
    new = folder is not None and not folder.exists()
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise OSError(f"out = {paths.display_path(folder)}: {error.strerror}; expected a folder that can be written") from error
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def of_its_own(out: Path, model: Path, images: Path) -> None:
    """ValueError if results would lie among the images, or the model where a result will be."""
    if out.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"out = {paths.display_path(out)}: inside the folder of the images; expected another")
    if model.resolve().parent == out.resolve() and model.name in RESULTS:
        raise ValueError(f"out = {paths.display_path(out)}: the model is {model.name} in it; expected another folder")


def of_the_same(out: Path, scanned: dict) -> None:
    """ValueError if the folder holds the scan of another model, or of other images."""
    try:
        before = json.loads((out / "scan.json").read_text())["scanned"]
        known = {name: before[name] for name in ("sha256", "images")}
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        known = None
    if known != {name: scanned[name] for name in ("sha256", "images")}:
        raise ValueError(
            f"out = {paths.display_path(out)}: holds the scan of another model or of other images; expected another folder"
        )


def identity(file: Path, a: argparse.Namespace, model: models.WrappedClassifier, images: read_images.Images) -> dict:
    """What was scanned, so that a report can be told from another."""
    with open(file, "rb") as stream:
        mark = hashlib.file_digest(stream, "sha256").hexdigest()
    inner = [part for part in model.modules() if isinstance(part, Normalize)]
    mean, std = ([round(v, 4) for v in getattr(inner[-1], name).flatten().tolist()] for name in ("mean", "std"))
    return {
        "sha256": mark, "network": a.network, "mean": mean, "std": std, "image size": images.split.images.shape[-1],
        "images": images.fingerprint, "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def add(commands) -> None:
    """The command's arguments."""
    defaults = Options()
    one = commands.add_parser("scan", help="is a model from elsewhere backdoored?")
    one.add_argument("model", help="a safetensors file")
    one.add_argument("images", help="a folder with a folder of clean images for each class")
    one.add_argument("--network", required=True, help="smallcnn, resnet18, fastcnn, or torchvision:NAME")
    one.add_argument(
        "--mean", type=numbers, help="of the model's inputs, in [0, 1]: 0.485,0.456,0.406 (with a minus: --mean=-1,0,0)"
    )
    one.add_argument("--std", type=numbers, help="0.229,0.224,0.225")
    one.add_argument("--image-size", type=int, help="side of the model's inputs (default: that of the images)")
    one.add_argument(
        "--classes",
        type=folder_names,
        help="the folders' names in the order of the model's outputs: cat,dog or a JSON list (default: sorted)",
    )
    one.add_argument("--sizes", type=sides, help="sides of the patches (default: 3,4,5 for each 32 of the image's)")
    one.add_argument("--repair", action="store_true", help="also make a repaired model, if something is found")
    one.add_argument("--repair-epochs", type=int, default=defaults.repair_epochs)
    one.add_argument("--repair-lr", type=float, default=defaults.repair_lr)
    one.add_argument("--augment", default=defaults.augment, help="in the repair: none, crop, crop-flip, smallcrop-flip")
    one.add_argument("--lowest", type=float, help="accuracy below which no verdict is given")
    one.add_argument("--as-told", action="store_true", help="mean, std and order are right, even if others fit better")
    one.add_argument("--seed", type=int, default=defaults.seed)
    one.add_argument("--device", default=defaults.device)
    one.add_argument("--precision", default=defaults.precision)
    one.add_argument("--out", type=Path, help="folder of the results (default: runs/scans/...)")
    one.add_argument("--fail-if-found", action="store_true", help="exit with 3 if a class is flagged")


def main(a: argparse.Namespace) -> int:
    options = Options(
        sizes=a.sizes, repair=a.repair, repair_epochs=a.repair_epochs, repair_lr=a.repair_lr, augment=a.augment,
        min_accuracy=a.min_accuracy, trust_preprocessing=a.trust_preprocessing, seed=a.seed, device=a.device, precision=a.precision,
    )  # fmt: skip
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {sanitize(text, 500)}", file=sys.stderr, flush=True)

    file = paths.find(a.model)
    if a.out:
        of_its_own(a.out, file, paths.find(a.images))
    with writable(a.out):
        images = read_images.read(a.images, a.image_size, a.classes)
        for note in images.notes:
            say(note)
        model = models.read(a.model, a.network, len(images.classes), a.mean, a.std)
        scanned = identity(file, a, model, images)
        key = store.config_key({name: scanned[name] for name in ("sha256", "images")})
        out = a.out or paths.runs() / "scans" / f"{file.stem}-{key[:8]}"
        of_the_same(out, scanned)
    name = sanitize(file.name)
    try:
        done = scan(model, images, options, say)
    except NoVerdict as error:
        scan_report.write_none(error, scanned, images.notes, out, name)
        raise
    done.result["scanned"] = scanned
    written = [*scan_report.write(done, out, name)]
    if options.repair:
        (out / "repaired.safetensors").unlink(missing_ok=True)  # of an earlier scan of the same
    if done.repaired is not None:
        written.append(out / "repaired.safetensors")
        scratch = written[-1].with_name(".repaired.safetensors.part")
        try:
            save_file({k: t.cpu().contiguous() for k, t in done.repaired.network.state_dict().items()}, scratch)
            scratch.replace(written[-1])
        except (SafetensorError, OSError) as error:
            raise OSError(f"cannot write {paths.display_path(written[-1])}: {error}") from error
        finally:
            scratch.unlink(missing_ok=True)
    found = done.result
    print(f"{name}: {found['verdict']}{': ' + sanitize_list(found['flagged'], 20) if found['flagged'] else ''}")
    print(sanitize(scan_report.summary(found), 5000))
    if done.repaired is not None:
        before, after = (found["repair"][f"accuracy {when}"]["rate"] for when in ("before", "after"))
        print(f"repaired: accuracy {before:.1%} before, {after:.1%} after, on images that the repair did not see")
    print("\n".join(paths.display_path(file) for file in written))
    return 3 if a.fail_if_found and found["flagged"] else 0
