"""The trigger distribution: a mixture of generators, one for each level of the staircase."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import generator as generators
from mesa_lib import mine
from mesa_lib.settings import Settings


@dataclass
class Level:
    """One step of the staircase.

    Attributes:
        beta: the success level that the generator was trained for.
        generator: noise (B, noise_dim) -> triggers (B, *shape).
        information: estimate of I(G(z); z) in nats.
        history: records of the training, about 40.
    """

    beta: float
    generator: nn.Module
    information: float
    history: list[dict] = field(default_factory=list)


@dataclass
class TriggerDistribution:
    """Levels in descending order of beta, and gamma, their weights in the mixture."""

    levels: list[Level]
    gammas: list[float]
    settings: Settings

    @property
    def betas(self) -> list[float]:
        """The success levels, highest first."""
        return [level.beta for level in self.levels]

    def at(self, beta: float) -> "TriggerDistribution":
        """Return one level alone, as a distribution; ValueError lists the levels."""
        for level in self.levels:
            if level.beta == beta:
                return TriggerDistribution([level], [1.0], self.settings)
        raise ValueError(f"beta = {beta}: expected one of the modeled levels {self.betas}")

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return n triggers (n, 3, h, w) in (0, 1), without trigger noise, each from a level drawn with gamma."""
        weights = torch.tensor(self.gammas, device=rng.device)
        level_of = torch.multinomial(weights, n, replacement=True, generator=rng)
        z = generators.noise(n, self.settings.noise_dim, self.settings.noise, rng)
        triggers = [level.generator.to(rng.device).eval()(z) for level in self.levels]
        return torch.stack(triggers)[level_of, torch.arange(n, device=rng.device)]

    def measured_information(self, n: int = 4096, seed: int = 0) -> float:
        """Return I(G(z); z) of the highest level in nats, by a new statistics network on n fresh samples.

        `Level.information` comes from the network that was trained along with the generator and depends on the
        settings; this estimate always uses the same network, so settings can be compared by it.
        """
        generator = self.levels[0].generator.eval()
        rng = devices.rng(seed, next(generator.parameters()).device)
        z = generators.noise(n, self.settings.noise_dim, self.settings.noise, rng)
        with torch.no_grad():
            x = generator(z)
        return mine.estimate(x.cpu(), z.cpu(), seed=seed)[0]

    def tensors(self) -> dict[str, Tensor]:
        """Return all weights, named `level0.last.weight` and so on."""
        return {
            f"level{i}.{name}": tensor
            for i, level in enumerate(self.levels)
            for name, tensor in level.generator.state_dict().items()
        }

    def summary(self) -> dict:
        """Return everything that is not weights: gammas, and beta, information and history of each level."""
        levels = [{"beta": v.beta, "information": v.information, "history": v.history} for v in self.levels]
        return {"gammas": self.gammas, "levels": levels}

    @classmethod
    def restore(
        cls, tensors: dict[str, Tensor], summary: dict, shape: Sequence[int], settings: Settings
    ) -> "TriggerDistribution":
        """Return the distribution whose `tensors()` and `summary()` these are; shape: that of a trigger (3, h, w)."""
        levels = []
        for i, entry in enumerate(summary["levels"]):
            generator = generators.build(settings.generator, shape, settings.hidden, settings.noise_dim, 0)
            prefix = f"level{i}."
            generator.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
            levels.append(Level(entry["beta"], generator.eval(), entry["information"], entry["history"]))
        return cls(levels, summary["gammas"], settings)


def mixture_weights(levels: Sequence[Level], kind: str) -> list[float]:
    """Return gamma_i, the weight of each level: `equal`, or `entropy`, step height x exp(h(G_i)).

    A staircase adds, at level beta_i, a slab of height beta_i - beta_(i+1) over a set of volume exp(h(G_i)); a uniform
    density has entropy log volume. As in the paper, MINE's estimate of I(G(z); z) stands in for the entropy h.
    """
    if kind == "equal":
        return [1 / len(levels)] * len(levels)
    heights, below = {}, 0.0
    for level in sorted(levels, key=lambda level: level.beta):
        heights[id(level)] = level.beta - below
        below = level.beta
    top = max(level.information for level in levels)
    raw = [heights[id(level)] * math.exp(level.information - top) for level in levels]
    return [weight / sum(raw) for weight in raw]
