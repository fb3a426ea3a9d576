"""A file of weights from outside: its header is compared with the architecture before any of it is loaded.

Nothing is allocated for what does not fit: neither the file's tensors nor a network as wide as the file claims.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mesa_lib import store
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize, sanitize_list

#: types of weights that are read; counters, and what is fixed by the architecture, may be whole numbers
FLOATS = {"F64", "F32", "F16", "BF16"}
COUNTERS = {"I64", "I32"}
COUNTER = "num_batches_tracked"
#: of names that wrappers put before all others at most so many, one after the other
WRAPPERS = 4
#: more tensors than any classifier has
MOST = 100_000


@dataclass(frozen=True)
class Header:
    """What a file claims to hold: name -> type and shape; `file` as messages call it; `where` it lies."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    file: str
    where: Path

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1] if name in self.tensors else ()

    @property
    def source(self) -> str:
        return f"checkpoint = '{sanitize(self.file)}'"


def header(file: str | Path) -> Header:
    """Names, types and shapes in a safetensors file; ValueError if it is none, FileNotFoundError if there is none."""
    where = paths.find(file)
    if not where.is_file():
        raise FileNotFoundError(f"checkpoint = '{sanitize(where.name)}': no such file; expected a safetensors file")
    try:
        with safe_open(where, "pt") as stream:
            names = list(stream.keys())
            if not 0 < len(names) <= MOST:
                raise ValueError(f"{len(names)} tensors; expected those of one classifier")
            slices = {name: stream.get_slice(name) for name in names}
            known = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        store.refuse_pickle(where)
        said = sanitize(str(error))
        more = "" if "expected" in said else "; expected a whole safetensors file"
        raise ValueError(f"checkpoint = '{sanitize(where.name)}': {said}{more}") from error
    return Header(known, where.name, where)


def fitting(
    found: Header, network: nn.Module, classes: int, may_miss: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Name in the network -> name in the file, and notes; ValueError says how the file differs from the network.

    What all names begin with, up to a dot, is taken off where it is not the network's own, and missing counters are
    left to be zero. network: may be empty (on torch's meta device); may_miss: names without which the file is whole
    """
    state = network.state_dict()
    own = {name: tuple(t.shape) for name, t in state.items()}
    names, notes = {name: name for name in found.tensors}, []
    for _ in range(WRAPPERS):
        if own.keys() & names.keys():
            break
        first, dot, _ = next(iter(names)).partition(".")  # wrappers put `module.`, `_orig_mod.`, `model.` before
        prefix = first + dot
        if not dot or not all(name.startswith(prefix) and name != prefix for name in names):
            break
        names = {name.removeprefix(prefix): kept for name, kept in names.items()}
        notes.append(f"All names in the file begin with '{sanitize(prefix)}', which was taken off.")
    counters = [name for name in own if name.endswith(COUNTER) and name not in names]
    if names and not own.keys() & names.keys():
        _below(found, own.keys())
    missing = [name for name in own if name not in names and name not in (*counters, *may_miss)]
    extra = [name for name in names if name not in own]
    other = [name for name in own if name in names and found.shape(names[name]) != own[name]]
    heads = {found.shape(names[name])[0] for name in other if found.shape(names[name]) and own[name][:1] == (classes,)}
    if other and not (missing or extra) and len(heads) == 1:
        if all(found.shape(names[name])[1:] == own[name][1:] for name in other):
            raise ValueError(
                f"{found.source}: the model tells {heads.pop()} classes apart, the images have {classes}; "
                "expected a folder for each class of the model"
            )
    if missing or extra or other:
        shapes = [f"{name} {found.shape(names[name])} for {own[name]}" for name in other]
        parts = {"missing": missing, "not known": extra, "of another shape": shapes}
        said = "; ".join(f"{len(some)} {what}: {sanitize_list(some)}" for what, some in parts.items() if some)
        raise ValueError(
            f"{found.source}: the weights are of another architecture than {type(network).__name__} ({said})"
        )
    odd = [
        f"{name} {found.tensors[kept][0]}"
        for name, kept in names.items()
        if found.tensors[kept][0] not in (FLOATS if state[name].is_floating_point() else FLOATS | COUNTERS)
    ]
    if odd:
        raise ValueError(
            f"{found.source}: {sanitize_list(odd)}; expected floating-point weights ({', '.join(sorted(FLOATS))})"
        )
    if counters:
        notes.append(f"{len(counters)} counters of batches are not in the file and were set to 0.")
    return names, notes


def _below(found: Header, own: Collection[str]) -> None:
    """ValueError that says so if the whole network is in the file below a name, with something else beside it."""
    some = next(name for name in own if not name.endswith(COUNTER))
    for name in found.tensors:
        prefix = name.removesuffix(some)
        below = {held.removeprefix(prefix) for held in found.tensors if held.startswith(prefix)}
        if name.endswith(some) and all(one in below or one.endswith(COUNTER) for one in own):
            rest = [held for held in found.tensors if not held.startswith(prefix)]
            raise ValueError(
                f"{found.source}: the weights are there below '{sanitize(prefix)}', with {len(rest)} tensors beside them "
                f"({sanitize_list(rest)}); expected a file of the classifier alone, under its own names"
            )


def load(found: Header, names: dict[str, str], network: nn.Module, keep: Collection[str] = ()) -> nn.Module:
    """The file's weights in the network, which they fit; what is to `keep` stays. ValueError if they are no weights."""
    held, own = store.load_checkpoint(found.where, any_name=True), network.state_dict()
    weights = {name: own[name] if name in keep else torch.zeros_like(own[name]) for name in own if name not in names}
    for name, kept in names.items():
        weights[name] = held[kept].float() if held[kept].is_floating_point() else held[kept].long()
        fixed = not own[name].is_floating_point() and not name.endswith(COUNTER)  # such as the places of attention
        if fixed and not torch.equal(weights[name].to(own[name].dtype), own[name]):
            raise ValueError(f"{found.source}: {sanitize(name)} is another than the architecture's; expected its own")
    for name, tensor in weights.items():
        _check(name, tensor, found.source)
    network.load_state_dict(weights)
    return network


def _check(name: str, tensor: Tensor, source: str) -> None:
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{source}: {sanitize(name)} holds NaN or infinite values; expected finite weights")
    if name.endswith("running_var") and tensor.min() < 0:
        raise ValueError(f"{source}: {sanitize(name)} is {float(tensor.min()):.3g}; expected variances, 0 or more")
    if name == "normalize.std" and tensor.min() <= 0:
        raise ValueError(f"{source}: normalize.std is {float(tensor.min()):.3g}; expected numbers above 0")
