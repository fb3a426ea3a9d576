"""Device, precision and seeds, and what a result file says about the machine."""

import ctypes
import hashlib
import platform
import sys
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.metadata import version

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bf16")
#: libraries that take their number of threads from an environment variable
THREADED = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")


def threads_environment(threads: int | None) -> dict[str, str]:
    """Return the environment variables of a new process with so many threads; None: none of them."""
    return {f"{library}_NUM_THREADS": str(threads) for library in THREADED} if threads else {}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of this name; `auto` prefers CUDA, then MPS, then the CPU.

    Raises:
        ValueError: if the name is unknown or this machine has no such device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(n for n in ("cuda", "mps", "cpu") if available[n]))
    if name not in available:
        raise ValueError(f"device = {name!r}: expected one of {', '.join(DEVICES)}")
    if not available[name]:
        raise ValueError(f"device = {name!r}: this machine has none; expected auto or cpu")
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bfloat16 runs in hardware (CPUs with AMX or AVX512-BF16, recent CUDA cards)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def uses_bf16(device: torch.device, precision: str = "auto") -> bool:
    """Return whether the classifier computes in bfloat16: `bf16`, or `auto` where it is fast."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r}: expected one of {', '.join(PRECISIONS)}")
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def autocast(device: torch.device, precision: str = "auto"):
    """Return a context in which the classifier computes in bfloat16 or float32, as `uses_bf16` says."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if uses_bf16(device, precision) else nullcontext()


def derive_seed(seed: int, purpose: str, k: int = 0) -> int:
    """Return the seed of one purpose (and the k-th of its kind): an independent 31-bit number for each.

    Every random draw of the project gets its seed here, so that no two purposes share a random sequence by accident.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{k}".encode()).digest()[:4]) >> 1


def rng(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a seeded random generator on the device; nothing in mesa_lib draws from a global one."""
    return torch.Generator(device=device).manual_seed(seed)


@contextmanager
def one_thread():
    """Use one CPU thread inside the context: faster for small networks, and the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def keep_memory() -> bool:
    """Let glibc keep freed memory for the next step; for programs to call once, at their start.

    Large activations are otherwise mapped anew, page by page, in every step: a third of a step on two cores.

    Returns:
        True if the allocator took the setting; systems without glibc are left as they are.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # from malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1) and mallopt(top_pad, 2**26))


def describe(device: torch.device) -> dict:
    """Return versions, device and number of threads, as every result file states them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if device.type == "cpu":
        name = str(torch.cpu.get_capabilities().get("cpu_name") or name)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "system": sys.platform,
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
    }
