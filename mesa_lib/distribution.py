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

#: a level has missed its beta if fresh samples succeed on held-out images less than this fraction of it. Samples of a
#: level that is learned end near its beta, on either side; those of a level that is not learned stay near 0
REACHED = 0.5


@dataclass
class Level:
    """One step of the staircase.

    Attributes:
        beta: the success level that the generator was trained for.
        generator: noise (B, noise_dim) -> triggers (B, *shape).
        information: estimate of I(G(z); z) in nats.
        history: records of the training, about 40.
        success: mean F of fresh samples on images that the generator never saw; None: not measured.
        started_around: what found the trigger that the generator started around; None: it started from random weights.
    """

    beta: float
    generator: nn.Module
    information: float
    history: list[dict] = field(default_factory=list)
    success: float | None = None
    started_around: str | None = None

    @property
    def reached(self) -> bool:
        """Whether fresh samples succeed at least `REACHED` times as often as the level asks; True if not measured."""
        return self.success is None or self.success >= REACHED * self.beta


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

    @property
    def missed(self) -> list[float]:
        """The betas of levels whose samples do not succeed on held-out images: there the modeling has failed."""
        return [level.beta for level in self.levels if not level.reached]

    def reached(self) -> "TriggerDistribution":
        """Return the mixture of the levels that reached their beta; of all levels if none did."""
        kept = [pair for pair in zip(self.levels, self.gammas, strict=True) if pair[0].reached]
        if len(kept) in (0, len(self.levels)):
            return self
        total = sum(gamma for _, gamma in kept)
        return TriggerDistribution([v for v, _ in kept], [gamma / total for _, gamma in kept], self.settings)

    def with_better(self, others: Sequence[Level]) -> "TriggerDistribution":
        """Return the mixture in which each of the other levels replaces that of its beta, if its samples succeed more.

        The success of all levels must have been measured on the same images.
        """
        other = {level.beta: level for level in others}
        levels = [max(level, other.get(level.beta, level), key=lambda v: v.success) for level in self.levels]
        return TriggerDistribution(levels, mixture_weights(levels, self.settings.gamma), self.settings)

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
        """Return everything that is not weights: gammas, and all of each level but its generator."""
        names = ("beta", "information", "history", "success", "started_around")
        return {"gammas": self.gammas, "levels": [{name: getattr(v, name) for name in names} for v in self.levels]}

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
            levels.append(Level(**entry | {"generator": generator.eval()}))
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
