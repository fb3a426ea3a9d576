"""How long a scan will still take, told by how long its steps took so far."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from mesa_lib.settings import Settings

Found = TypeVar("Found")


class Progress:
    """Seconds for each pass of an image through the model and back, over all steps that were really done."""

    #: a step that took less came from the store, seconds
    FROM_STORE = 0.5
    #: seconds after which a step that is not done is heard of again
    EVERY = 60.0

    def __init__(self, say: Callable[[str], None] = lambda text: None):
        self.seconds, self.passes, self.say = 0.0, 0.0, say

    def timed(self, passes: float, do: Callable[[], Found], after: float = 0.0) -> Found:
        """What `do` returns; how long so many passes took is remembered.

        after: passes that are still to come then, for what is said while it takes its time
        """
        start, done = time.monotonic(), threading.Event()

        def heard_of() -> None:
            while not done.wait(self.EVERY):
                left = passes - (time.monotonic() - start) * self.passes / max(self.seconds, 1e-9)
                self.say(f"... going on{self.left(max(left, 0) + after)}")

        beside = threading.Thread(target=heard_of, daemon=True)
        beside.start()
        try:
            found = do()
        finally:
            done.set()
            beside.join()
        took = time.monotonic() - start
        if took > self.FROM_STORE or not self.passes:
            self.seconds, self.passes = self.seconds + took, self.passes + passes
        return found

    def left(self, passes: float, if_: str = "") -> str:
        """What so many passes will take, in words; nothing as long as no step was timed."""
        if not self.passes:
            return ""
        seconds = self.seconds / self.passes * passes
        words = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        return f"; about {words} left{if_}"


def of_modeling(settings: Settings) -> float:
    """How often images go through the model while a distribution is modeled."""
    return settings.steps * len(settings.betas) * settings.batch * settings.images_per_trigger
