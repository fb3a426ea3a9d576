"""Until all tasks are done: hand out as many as there is room for, gather how they end, keep the report fresh."""

import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator

from distributed import Client
from tqdm import tqdm

from . import cluster
from .task import Outcome, Task, perform

#: seconds between two looks at a task that another runner is doing
BUSY_AGAIN = 1.0
#: seconds between two counts of the workers
ROOM_AGAIN = 1.0
#: seconds without any worker after which the rest is given up
NO_WORKER = 120.0


def outcomes_of(tasks: Iterable[Task], client: Client, start: str = "") -> Iterator[tuple[Task, Outcome]]:
    """Every task with how it ended, in the order in which they end.

    No more are handed out than workers are free: a worker that dies takes one task with it, which is done again
    elsewhere, and after three deaths has failed. A task that another runner holds waits until that one is done.
    """
    waiting, later, running = deque(tasks), deque(), {}
    resources = {cluster.GPU: 1} if cluster.with_gpus(client) else {}
    room, looked, answered = 0, -math.inf, time.monotonic()
    while waiting or later or running:
        now = time.monotonic()
        if now - looked > ROOM_AGAIN:
            room, looked = cluster.room(client), now
            answered = now if room else answered
        if now - answered > NO_WORKER:
            for task in [*running.values(), *waiting, *(task for _, task in later)]:
                yield task, Outcome(task.name, "failed", 0.0, f"no worker for {NO_WORKER:.0f} s")
            return
        while later and later[0][0] <= now:
            waiting.append(later.popleft()[1])
        while waiting and len(running) < room:
            task = waiting.popleft()
            future = client.submit(perform, task, pure=False, resources=resources)
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
            time.sleep(0.02)


def told(task: Task, future) -> Outcome:
    """The outcome that a worker sent, or what became of the worker."""
    if future.status == "finished":
        return future.result()
    error = future.exception() if future.status == "error" else None
    if type(error).__name__ == "KilledWorker":
        return Outcome(task.name, "failed", 0.0, "its worker died three times (killed, or out of memory)")
    return Outcome(task.name, "failed", 0.0, f"lost with its worker ({error!r})" if error else "cancelled")


class Progress:
    """A bar over the tasks with the time left where a person watches, else a line for each that ends."""

    def __init__(self, total: int):
        self.live, self.total, self.done, self.failed = sys.stderr.isatty(), total, 0, 0
        self.start = time.monotonic()
        self.bar = tqdm(total=total, unit="task", disable=not self.live, smoothing=0.1, dynamic_ncols=True)

    def tell(self, task: Task, outcome: Outcome) -> None:
        self.done += 1
        self.failed += outcome.state == "failed"
        text = f"{task.name}: {outcome.state} in {outcome.seconds:.0f} s"
        text += f": {outcome.message.splitlines()[0]}" if outcome.message else ""
        if self.live:
            if outcome.state == "failed":
                self.bar.write(text, file=sys.stderr)
            self.bar.set_postfix_str(f"{self.failed} failed" if self.failed else "")
            self.bar.update()
        else:
            left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
            print(f"[{self.done}/{self.total}] {text}; {duration(left)} left", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()


class Every:
    """`due()` is true at the first call and then again each so many seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, -math.inf

    def due(self) -> bool:
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
