"""A trained model and the artifact that holds its weights."""

from dataclasses import dataclass

from torch import nn

from mesa_lib import store

#: in the result of a repair: the seconds of an earlier search, a detector's, that the repair reused
REUSED_SECONDS = "seconds of a reused search"


def seconds(artifact: store.Artifact) -> float:
    """Return the seconds that an artifact took, wherever and whenever it was made, with those of a reused search."""
    return artifact.made["seconds"] + artifact.result.get(REUSED_SECONDS, 0.0)


@dataclass(frozen=True)
class TrainedModel:
    """A model in eval mode, and the artifact that holds its weights."""

    model: nn.Module
    artifact: store.Artifact

    @property
    def history(self) -> list[dict]:
        """The records of its training (`training.train`)."""
        return self.artifact.result["history"]

    @property
    def about(self) -> dict:
        """Everything else that the attack or the repair recorded."""
        return {k: v for k, v in self.artifact.result.items() if k not in ("history", REUSED_SECONDS)}

    @property
    def config(self) -> dict:
        """The configuration, whose hash is the key."""
        return self.artifact.config
