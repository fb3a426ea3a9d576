"""Run the tasks until all have ended: hand out as many as there are free workers, and report how each ends."""

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

#: seconds after which a task that another runner was running is tried again
BUSY_AGAIN = 1.0
#: seconds between two counts of the workers
COUNT_AGAIN = 1.0
#: seconds without any worker after which the remaining tasks have failed
NO_WORKER = 120.0


class Workers:
    """How many tasks the workers can take, counted again each `COUNT_AGAIN` seconds; `tick` is called as often."""

    def __init__(self, client: Client, tick: Callable[[], None]):
        self.client, self.tick = client, tick
        self.capacity, self.resources = 0, {}
        self.counted, self.seen = -math.inf, time.monotonic()

    def count(self) -> None:
        """Count the workers if the last count is old."""
        if time.monotonic() - self.counted <= COUNT_AGAIN:
            return
        self.tick()
        self.capacity, self.resources = cluster.capacity(self.client)
        self.counted = time.monotonic()
        if self.capacity:
            self.seen = self.counted

    @property
    def gone(self) -> str:
        """Why no task can end any more; empty while there are workers, or may be some again."""
        if self.client.status in ("closed", "closing"):
            return "the scheduler is gone"
        if time.monotonic() - self.seen <= NO_WORKER:
            return ""
        return "the scheduler is gone" if self.client.status != "running" else f"no worker for {NO_WORKER:.0f} s"


def outcomes_of(
    tasks: Iterable[Task], client: Client, threads: int | None = None, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[Task, Outcome]]:
    """Yield every task with its outcome, in the order in which they end.

    No more tasks are handed out than workers are free: a worker that dies takes one task with it, which runs again
    elsewhere until it has failed. A task that another runner holds waits for that runner. When the scheduler or all its
    workers are gone for long, the remaining tasks have failed.

    Args:
        threads: of each task's arithmetic; None: what the workers were started with.
        tick: called about once a second.
    """
    waiting, later, running = deque(tasks), deque(), {}
    workers = Workers(client, tick)
    while waiting or later or running:
        workers.count()
        if workers.gone:
            for task in [*running.values(), *waiting, *(task for _, task in later)]:
                yield task, Outcome(task.name, "failed", 0.0, workers.gone)
            return
        while later and later[0][0] <= time.monotonic():
            waiting.append(later.popleft()[1])
        while waiting and len(running) < workers.capacity:
            task = waiting.popleft()
            running[client.submit(perform, task, threads, pure=False, resources=workers.resources)] = task
        ended = [future for future in running if future.done()]
        for future in ended:
            task = running.pop(future)
            outcome = outcome_of(task, future)
            if outcome.state == "busy":
                later.append((time.monotonic() + BUSY_AGAIN, task))
            else:
                yield task, outcome
        if not ended:
            time.sleep(0.1)


def outcome_of(task: Task, future) -> Outcome:
    """Return the outcome that a worker sent, if its result really exists; else what became of the worker."""
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
    """A bar over the tasks with the time left on a terminal, else a line for each that ends."""

    def __init__(self, total: int, at_once: int = 1):
        self.live, self.total, self.done, self.failed = sys.stderr.isatty(), total, 0, 0
        self.at_once, self.seconds = max(1, at_once), 0.0
        self.start = time.monotonic()
        self.bar = tqdm(total=total, unit="task", disable=not self.live, smoothing=0.1, dynamic_ncols=True)

    def tick(self) -> None:
        """Keep the clock going while no task ends."""
        self.bar.refresh()

    def show(self, task: Task, outcome: Outcome) -> None:
        """Count a task that ended, and show it."""
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
        """Return the seconds until the end, if every task takes the mean of those that ended."""
        rounds = math.ceil(self.total / self.at_once)
        return max(0.0, rounds * self.seconds / self.done - (time.monotonic() - self.start))

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


class Throttle:
    """`due()` is true at the first call, and then at most once in so many seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, -math.inf

    def due(self) -> bool:
        """Return whether it is time again, and if so start to wait anew."""
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True


def duration(seconds: float) -> str:
    """Return `120 s`, `12 min` or `3 h 20 min`."""
    if seconds < 180:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
