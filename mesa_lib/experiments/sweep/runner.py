"""Until all tasks are done: hand out as many as there is room for, gather how they end, keep the report fresh."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from distributed import Client, KilledWorker
from tqdm import tqdm

from mesa_lib.experiments.sweep import cluster
from mesa_lib.experiments.sweep.task import Outcome, Task, perform
from mesa_lib.store import paths

#: seconds between two looks at a task that another runner is doing
BUSY_AGAIN = 1.0
#: seconds between two counts of the workers
ROOM_AGAIN = 1.0
#: seconds without any worker after which the rest is given up
NO_WORKER = 120.0


def outcomes_of(
    tasks: Iterable[Task], client: Client, threads: int | None = None, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[Task, Outcome]]:
    """Every task with how it ended, in the order in which they end. `tick` is called about once a second.

    No more are handed out than workers are free: a worker that dies takes one task with it, which is done again
    elsewhere until it has failed. A task that another runner holds waits until that one is done. When the scheduler or
    all its workers are gone for long, the rest has failed.
    """
    waiting, later, running = deque(tasks), deque(), {}
    room, resources, looked, answered = 0, {}, -math.inf, time.monotonic()
    while waiting or later or running:
        now = time.monotonic()
        if now - looked > ROOM_AGAIN:
            tick()
            (room, resources), looked = cluster.capacity(client), time.monotonic()
            answered = looked if room else answered
        if now - answered > NO_WORKER or client.status in ("closed", "closing"):
            gone = "the scheduler is gone" if client.status != "running" else f"no worker for {NO_WORKER:.0f} s"
            for task in [*running.values(), *waiting, *(task for _, task in later)]:
                yield task, Outcome(task.name, "failed", 0.0, gone)
            return
        while later and later[0][0] <= now:
            waiting.append(later.popleft()[1])
        while waiting and len(running) < room:
            task = waiting.popleft()
            future = client.submit(perform, task, threads, pure=False, resources=resources)
            running[future] = task
        ended = [future for future in running if future.done()]
        for future in ended:
            task = running.pop(future)
            outcome = told(task, future)
            if outcome.state == "busy":
                later.append((time.monotonic() + BUSY_AGAIN, task))
            else:
                yield task, outcome
        if not ended:
            time.sleep(0.1)


def told(task: Task, future) -> Outcome:
    """The outcome that a worker sent, if its result is really there; else what became of the worker."""
    if future.status == "finished":
        outcome = future.result()
        if outcome.state in ("done", "before") and task.result() is None:
            where = paths.display_path(task.folder / "result.json")
            message = f"its worker says {outcome.state}, but {where} is not there: do both see the same disk?"
            return Outcome(task.name, "failed", outcome.seconds, message)
        return outcome
    if future.status != "error":
        return Outcome(task.name, "failed", 0.0, "lost with its scheduler or worker")
    error = future.exception()
    if isinstance(error, KilledWorker):
        return Outcome(task.name, "failed", 0.0, "its worker died again and again (killed, or out of memory)")
    return Outcome(task.name, "failed", 0.0, f"its worker could not begin: {error!r}")


class Progress:
    """A bar over the tasks with the time left where a person watches, else a line for each that ends."""

    def __init__(self, total: int, at_once: int = 1):
        self.live, self.total, self.done, self.failed = sys.stderr.isatty(), total, 0, 0
        self.at_once, self.seconds = max(1, at_once), 0.0
        self.start = time.monotonic()
        self.bar = tqdm(total=total, unit="task", disable=not self.live, smoothing=0.1, dynamic_ncols=True)

    def tick(self) -> None:
        """The clock goes on while nothing ends."""
        self.bar.refresh()

    def tell(self, task: Task, outcome: Outcome) -> None:
        self.done += 1
        self.failed += outcome.state == "failed"
        self.seconds += outcome.seconds
        text = f"{task.name}: {outcome.state} in {outcome.seconds:.0f} s"
        text += f": {outcome.message.splitlines()[0]}" if outcome.message else ""
        if self.live:
            if outcome.state == "failed":
                self.bar.write(text, file=sys.stderr)
            self.bar.set_postfix_str(f"{self.failed} failed" if self.failed else "")
            self.bar.update()
        else:
            print(f"[{self.done}/{self.total}] {text}; {duration(self.left())} left", file=sys.stderr, flush=True)

    def left(self) -> float:
        """Seconds until the end, if every task takes the mean of those that ended."""
        rounds = math.ceil(self.total / self.at_once)
        return max(0.0, rounds * self.seconds / self.done - (time.monotonic() - self.start))

    def close(self) -> None:
        self.bar.close()


class Throttle:
    """`due()` is true at the first call and then again each so many seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, -math.inf

    def due(self) -> bool:
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True


def duration(seconds: float) -> str:
    """`120 s`, `12 min`, `3 h 20 min`"""
    if seconds < 180:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
