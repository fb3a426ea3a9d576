"""How long a scan will still take, estimated from how long its steps took so far.

The steps differ by a factor of a hundred in length, so that a bar that counts steps (tqdm) would say nothing: time is
counted in passes of an image through the model and back.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from mesa_lib.defenses.mesa.trigger_search import TriggerSearch
from mesa_lib.settings import Settings

Result = TypeVar("Result")


class Progress:
    """Measures the seconds of a pass, over all steps that were computed and not loaded."""

    #: a step that took fewer seconds came from the store
    FROM_STORE = 0.5
    #: seconds after which a step that is not done is reported again
    INTERVAL = 60.0

    def __init__(self, say: Callable[[str], None] = lambda text: None):
        """Prepare; `say` receives a line of text whenever a step takes long."""
        self.seconds, self.passes, self.say = 0.0, 0.0, say

    def run(self, passes: float, step: Callable[[], Result], after: float = 0.0) -> Result:
        """Return what `step` returns, and note how long it took.

        Args:
            passes: how often an image goes through the model in this step.
            step: what to do.
            after: passes of all later steps, for the reports while the step runs.
        """
        start, done = time.monotonic(), threading.Event()

        def report() -> None:
            while not done.wait(self.INTERVAL):
                left = passes - (time.monotonic() - start) * self.passes / max(self.seconds, 1e-9)
                self.say(f"... going on{self.left(max(left, 0) + after)}")

        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            result = step()
        finally:
            done.set()
            reporter.join()
        took = time.monotonic() - start
        if took > self.FROM_STORE or not self.passes:
            self.seconds, self.passes = self.seconds + took, self.passes + passes
        return result

    def seconds_of(self, passes: float) -> float:
        """Return how many seconds so many passes will take; 0 as long as no step was measured."""
        return self.seconds / self.passes * passes if self.passes else 0.0

    def left(self, passes: float, condition: str = "") -> str:
        """Return how long so many passes will take, in words; "" as long as no step was measured."""
        if not self.passes:
            return ""
        seconds = self.seconds_of(passes)
        duration = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        return f"; about {duration} left{condition}"


def modeling_passes(settings: Settings) -> float:
    """Return the number of passes in which a distribution is modeled."""
    return settings.steps * len(settings.betas) * settings.triggers_per_step * settings.images_per_trigger


def check_passes(settings: Settings, search: TriggerSearch) -> float:
    """Return the number of passes of a residual check: one level is modeled, and a search goes forward only."""
    generations = search.candidates + search.generations * (search.parents + search.children)
    return modeling_passes(settings) / len(settings.betas) + generations * search.images / 3
