"""A third-party file of weights: its header is compared with the architecture before any weight is loaded.

Nothing is allocated for a file that does not fit: neither its tensors nor a network as wide as the file claims.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mesa_lib import store
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize, sanitize_list

#: types of weights that are read; counters, and tensors fixed by the architecture, may be whole numbers
FLOATS = {"F64", "F32", "F16", "BF16"}
COUNTERS = {"I64", "I32"}
COUNTER = "num_batches_tracked"
#: the largest number of prefixes, one after the other, that are taken off all names
MAX_WRAPPERS = 4
#: more tensors than any classifier has
MAX_TENSORS = 100_000
#: this project's name for the normalization, and the name in files that earlier versions wrote
NORMALIZATION, OLD_NORMALIZATION = "normalize", "normalise"


@dataclass(frozen=True)
class Header:
    """What a file claims to hold.

    Attributes:
        tensors: name -> type and shape.
        file: the file's name in messages.
        path: where the file lies.
        renamed: name in `tensors` -> name in the file, where an earlier version of this project wrote another name.
    """

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    file: str
    path: Path
    renamed: dict[str, str]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; () if there is none of this name."""
        return self.tensors[name][1] if name in self.tensors else ()

    @property
    def source(self) -> str:
        """The file as error messages begin."""
        return f"checkpoint = '{sanitize(self.file)}'"


def read_header(file: str | Path) -> Header:
    """Return names, types and shapes of the tensors in a safetensors file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, or holds no tensors.
    """
    path = paths.find(file)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint = '{sanitize(path.name)}': no such file; expected a safetensors file")
    try:
        with safe_open(path, "pt") as stream:
            names = list(stream.keys())
            if not 0 < len(names) <= MAX_TENSORS:
                raise ValueError(f"{len(names)} tensors; expected those of one classifier")
            slices = {name: stream.get_slice(name) for name in names}
            tensors = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        store.refuse_pickle(path)
        reason = sanitize(str(error))
        expected = "" if "expected" in reason else "; expected a whole safetensors file (`convert` makes one)"
        if reason.startswith("Error while deserializing header"):
            reason = f"no safetensors file, or a damaged one ({reason.rpartition(': ')[2]})"
        raise ValueError(f"checkpoint = '{sanitize(path.name)}': {reason}{expected}") from error
    renamed = {new: name for name in names if (new := _current_name(name)) != name and new not in tensors}
    stored = {old: new for new, old in renamed.items()}
    return Header({stored.get(name, name): claim for name, claim in tensors.items()}, path.name, path, renamed)


def _current_name(name: str) -> str:
    return ".".join(NORMALIZATION if part == OLD_NORMALIZATION else part for part in name.split("."))


def match_names(
    header: Header, network: nn.Module, classes: int, may_miss: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Compare a file with a network by names, shapes and types.

    A prefix of all names, up to a dot, is taken off if it is not the network's own. Missing counters are left out.

    Args:
        header: what the file claims.
        network: the architecture; may be empty (on torch's meta device).
        classes: the number of classes that the images have.
        may_miss: names without which the file is complete.

    Returns:
        Name in the network -> name in the header, and notes for people.

    Raises:
        ValueError: says how the file differs from the network.
    """
    state = network.state_dict()
    names, notes = _without_wrappers(header, state)
    counters = [name for name in state if name.endswith(COUNTER) and name not in names]
    if names and not state.keys() & names.keys():
        _refuse_nested(header, state)
    missing = [name for name in state if name not in names and name not in (*counters, *may_miss)]
    extra = [name for name in names if name not in state]
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differ = [name for name in shapes if name in names and header.shape(names[name]) != shapes[name]]
    if differ and not (missing or extra):
        _refuse_other_classes(header, names, {name: shapes[name] for name in differ}, classes)
    if missing or extra or differ:
        wrong_shapes = [f"{name} {header.shape(names[name])} for {shapes[name]}" for name in differ]
        parts = {"missing": missing, "not known": extra, "of another shape": wrong_shapes}
        listed = "; ".join(f"{len(some)} {what}: {sanitize_list(some)}" for what, some in parts.items() if some)
        raise ValueError(
            f"{header.source}: the weights are of another architecture than {type(network).__name__} ({listed})"
        )
    _check_types(header, names, state)
    if counters:
        notes.append(f"{len(counters)} counters of batches are not in the file and were set to 0.")
    return names, notes


def _without_wrappers(header: Header, state: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Take off what wrappers put before all names (`module.`, `_orig_mod.`) -> new name -> old name, and notes."""
    names, notes = {name: name for name in header.tensors}, []
    if header.renamed:
        notes.append(
            f"The file names the normalization '{OLD_NORMALIZATION}', as earlier versions did; it was read as "
            f"'{NORMALIZATION}'."
        )
    for _ in range(MAX_WRAPPERS):
        if set(state) & names.keys():
            break
        first, dot, _ = next(iter(names)).partition(".")
        prefix = first + dot
        if not dot or not all(name.startswith(prefix) and name != prefix for name in names):
            break
        names = {name.removeprefix(prefix): old for name, old in names.items()}
        notes.append(f"All names in the file begin with '{sanitize(prefix)}', which was taken off.")
    return names, notes


def _refuse_other_classes(
    header: Header, names: dict[str, str], differ: dict[str, tuple[int, ...]], classes: int
) -> None:
    """Raise a ValueError that says so if the network differs in nothing but the number of classes."""
    in_file = {name: header.shape(names[name]) for name in differ}
    heads = {in_file[name][0] for name, shape in differ.items() if in_file[name] and shape[:1] == (classes,)}
    if len(heads) == 1 and all(in_file[name][1:] == shape[1:] for name, shape in differ.items()):
        raise ValueError(
            f"{header.source}: the model has {heads.pop()} classes, the images have {classes}; "
            "expected a folder for each class of the model"
        )


def _refuse_nested(header: Header, state: Collection[str]) -> None:
    """Raise a ValueError that says so if the whole network lies in the file below a name, beside other tensors."""
    sample = next(name for name in state if not name.endswith(COUNTER))
    for name in header.tensors:
        prefix = name.removesuffix(sample)
        below = {other.removeprefix(prefix) for other in header.tensors if other.startswith(prefix)}
        if name.endswith(sample) and all(one in below or one.endswith(COUNTER) for one in state):
            rest = [other for other in header.tensors if not other.startswith(prefix)]
            raise ValueError(
                f"{header.source}: the weights lie below '{sanitize(prefix)}', with {len(rest)} tensors beside them "
                f"({sanitize_list(rest)}); expected a file of the classifier alone, under its own names"
            )


def _check_types(header: Header, names: dict[str, str], state: dict[str, Tensor]) -> None:
    wrong = [
        f"{name} {header.tensors[old][0]}"
        for name, old in names.items()
        if header.tensors[old][0] not in (FLOATS if state[name].is_floating_point() else FLOATS | COUNTERS)
    ]
    if wrong:
        raise ValueError(
            f"{header.source}: {sanitize_list(wrong)}; expected floating-point weights ({', '.join(sorted(FLOATS))})"
        )


def load_weights(header: Header, names: dict[str, str], network: nn.Module, keep: Collection[str] = ()) -> nn.Module:
    """Load the file's weights into a network that they fit (`match_names`) and return it.

    Args:
        keep: names of tensors that stay as they are.

    Raises:
        ValueError: if a weight is not finite, a variance is negative, or a fixed tensor is not the architecture's.
    """
    stored, own = store.load_checkpoint(header.path, any_name=True), network.state_dict()
    weights = {name: own[name] if name in keep else torch.zeros_like(own[name]) for name in own if name not in names}
    for name, old in names.items():
        tensor = stored[header.renamed.get(old, old)]
        weights[name] = tensor.float() if tensor.is_floating_point() else tensor.long()
        fixed = not own[name].is_floating_point() and not name.endswith(COUNTER)  # such as indices of attention
        if fixed and not torch.equal(weights[name].to(own[name].dtype), own[name]):
            raise ValueError(
                f"{header.source}: {sanitize(name)} differs from the architecture's; expected the architecture's own"
            )
    for name, tensor in weights.items():
        _check_values(name, tensor, header.source)
    state = OrderedDict(weights)
    state._metadata = own._metadata  # versions of layers, which safetensors files do not hold
    network.load_state_dict(state)
    return network


def _check_values(name: str, tensor: Tensor, source: str) -> None:
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{source}: {sanitize(name)} holds NaN or infinite values; expected finite weights")
    if name.endswith("running_var") and tensor.min() < 0:
        raise ValueError(f"{source}: {sanitize(name)} is {float(tensor.min()):.3g}; expected variances, 0 or more")
    if name == f"{NORMALIZATION}.std" and tensor.min() <= 0:
        raise ValueError(f"{source}: {name} is {float(tensor.min()):.3g}; expected numbers above 0")
