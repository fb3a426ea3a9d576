"""The workers of a sweep: Dask workers on this machine, each with one task at a time, or those of another scheduler."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker

import dask
import torch
from dask.system import CPU_COUNT
from distributed import Client, Nanny, Scheduler, Security, SpecCluster
from distributed.system import MEMORY_LIMIT

from mesa_lib import device as devices

#: the Dask resource of a worker that has a GPU to itself, which a task then asks for
GPU = "GPU"
#: deaths of its worker after which a task has failed
DEATHS = 3
#: memory that one task may need, GiB: CIFAR-10's images twice, a training, a kernel and its worker
TASK_MEMORY = 3


@dataclass(frozen=True)
class Plan:
    """How many workers on this machine, with how many threads, and on which GPUs (in turn)."""

    workers: int
    threads: int
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" on GPU {', '.join(self.gpus)}" if self.gpus else ""
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return f"{workers} of {self.threads} thread{'s' if self.threads > 1 else ''}{where}"


def plan(jobs: int | None = None, threads: int | None = None, device: str = "auto", tasks: int = 10**6) -> Plan:
    """Return what this machine allows: one worker per GPU if there are any, else as cores and memory suffice.

    Args:
        jobs: number of workers; more than there are GPUs share them. None: chosen here.
        threads: of each worker. None: the cores are shared out.
        device: of the tasks, as the parameter.
        tasks: number of tasks; there are never more workers.
    """
    for name, value in (("jobs", jobs), ("threads", threads)):
        if value is not None and not 1 <= value <= 1024:
            raise ValueError(f"{name} = {value}: expected a number from 1 to 1024")
    gpus = visible_gpus() if device in ("auto", "cuda") else ()
    if jobs is None:
        by_memory = int(MEMORY_LIMIT / 2**30 // TASK_MEMORY)
        jobs = max(1, len(gpus) or min(CPU_COUNT // (threads or 1), by_memory))
    jobs = min(jobs, tasks)
    return Plan(jobs, threads or max(1, CPU_COUNT // jobs), gpus)


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in allowed.split(",")] if allowed else []
    return tuple(names or map(str, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ()


@contextmanager
def stop_signals_wait() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM inside the context; threads and processes started in it never receive them.

    A terminal sends Ctrl-C to every process, and so may a supervisor with SIGTERM. Only the runner may respond: it
    ends its workers.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start unblocks the signals: so before, not inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def workers(wanted: Plan) -> Iterator[Client]:
    """Start workers on this machine; a worker that dies is replaced, and its task run again.

    They and the scheduler listen on this machine alone and accept no connection without the key of this run: on a
    shared machine other people's programs could otherwise have them run anything.

    Raises:
        ValueError: if they cannot be started.
    """
    silence_dask()
    security = Security.temporary()
    local = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0", "protocol": "tls://"}
    local |= {"security": security}
    specs = {}
    for number in range(wanted.workers):
        card = wanted.gpus[number % len(wanted.gpus)] if wanted.gpus else None
        options = {
            "nthreads": 1,  # one task at a time; the threads are those of its arithmetic
            "env": devices.threads_environment(wanted.threads),
            "resources": {GPU: 1} if card is not None else {},
            "memory_limit": 0,  # a task's memory is that of its kernel, which Dask does not see
        }
        if card is not None:
            options["env"]["CUDA_VISIBLE_DEVICES"] = card
        specs[number] = {"cls": Nanny, "options": local | options}
    scheduler = {"cls": Scheduler, "options": local | {"port": 0, "allowed_failures": DEATHS - 1}}
    try:
        with stop_signals_wait():
            cluster = SpecCluster(
                workers=specs, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL, name="mesa"
            )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{wanted} could not be started: {error}") from error
    with cluster, Client(cluster, security=security) as client:
        client.wait_for_workers(wanted.workers, timeout=300)
        yield client


@contextmanager
def connect(address: str, wait: float = 60) -> Iterator[Client]:
    """Connect to the workers of an existing scheduler: tcp://HOST:PORT, or the path of its scheduler file.

    Raises:
        ValueError: if it does not respond or has no worker within `wait` seconds, or if a worker runs several tasks at
            a time: they would share one process environment.
    """
    silence_dask()
    where = {"scheduler_file": address} if os.path.isfile(address) else {"address": address}
    try:
        client = Client(**where, timeout=wait)
    except (OSError, ValueError, TimeoutError) as error:
        raise ValueError(f"scheduler {address!r}: no answer ({error}); expected tcp://HOST:PORT or a file") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=wait)
        except TimeoutError:
            raise ValueError(f"scheduler {address!r}: no worker in {wait:.0f} s; start one or more first") from None
        shared = {name: info["nthreads"] for name, info in list_workers(client).items() if info["nthreads"] > 1}
        if shared:
            worker, several = shared.popitem()
            raise ValueError(
                f"scheduler {address!r}: worker {worker} runs {several} tasks at a time; "
                "expected workers started with --nthreads 1"
            )
        yield client


def list_workers(client: Client) -> dict[str, dict]:
    """Return the workers and what Dask knows of them, by address; none if the scheduler does not respond."""
    try:
        return client.scheduler_info(n_workers=-1).get("workers", {})
    except (OSError, RuntimeError, ValueError, TimeoutError, KeyError):
        return {}


def capacity(client: Client) -> tuple[int, dict]:
    """Return how many tasks can run at once, and the resources each must ask for: a GPU, if any worker has one."""
    infos = list_workers(client).values()
    cards = sum(min(info["nthreads"], int(info["resources"].get(GPU, 0))) for info in infos)
    return (cards, {GPU: 1}) if cards else (sum(info["nthreads"] for info in infos), {})


def silence_dask() -> None:
    """Configure Dask not to log workers that come and go (the runner reports what matters), nor to profile itself.

    The profiling takes 2% of a core from the task of every worker.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    silent = {"DASK_LOGGING__DISTRIBUTED": "critical"}  # for the workers, who read it when they start
    profile = {"distributed.worker.profile.enabled": False, "distributed.admin.system-monitor.interval": "10s"}
    dask.config.set({"distributed.nanny.pre-spawn-environ": silent, "distributed.admin.tick.limit": "1h"} | profile)
