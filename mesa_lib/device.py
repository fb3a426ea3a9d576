"""The machine: device, precision, seeds, and what a result file says of them."""

import ctypes
import platform
import sys
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.metadata import version

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bf16")


def pick(name: str = "auto") -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; a named device must be there (ValueError)."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(n for n in ("cuda", "mps", "cpu") if there[n]))
    if name not in there:
        raise ValueError(f"device = {name!r}: expected one of {', '.join(DEVICES)}")
    if not there[name]:
        raise ValueError(f"device = {name!r}: this machine has none; expected auto or cpu")
    return torch.device(name)


def bf16_pays(device: torch.device) -> bool:
    """True where bfloat16 arithmetic is done in hardware (CPUs with AMX or AVX512-BF16, recent CUDA cards)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return False


def in_bf16(device: torch.device, precision: str = "auto") -> bool:
    """Whether the classifier computes in bfloat16 (`bf16`, or `auto` where it pays) or in float32."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r}: expected one of {', '.join(PRECISIONS)}")
    return precision == "bf16" or (precision == "auto" and bf16_pays(device))


def autocast(device: torch.device, precision: str = "auto"):
    """A context in which the classifier computes in bfloat16 or float32, as `in_bf16` says."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if in_bf16(device, precision) else nullcontext()


def rng(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A seeded random generator on the device: nothing in mesa_lib draws from a global one."""
    return torch.Generator(device=device).manual_seed(seed)


@contextmanager
def one_thread():
    """One CPU thread inside, as many as before afterwards: faster for small networks, and the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def keep_memory() -> bool:
    """Let glibc keep freed memory for the next step instead of giving it back to the system each time.

    Large activations are otherwise mapped anew, page by page, in every step: a third of a step on two cores. True if
    the allocator took it; other systems than Linux with glibc are left as they are.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1) and mallopt(top_pad, 2**26))


def describe(device: torch.device) -> dict:
    """Versions, device and threads, as they stand in every result file."""
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
