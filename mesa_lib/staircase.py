"""MESA, the max-entropy staircase approximator (Qiao, Yang, Li, NeurIPS 2019), Algorithms 1 and 2.

Cut the unknown density of valid triggers at success levels beta_1..beta_N. For each level train a generator
that spreads as widely as it can over the triggers that reach the level, and mix the N generators. The file
reads from top to bottom: settings, the testing function F, one level (Algorithm 2), the staircase (Algorithm 1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import device as devices
from . import generator as generators
from . import metrics, mine
from .classifiers import frozen
from .progress import bar
from .triggers import check_fits, random_places, stamp

HINGES, CRITICS, GAMMAS, PLACES, SCALES = (
    ("trigger", "image"),
    ("linear", "leaky"),
    ("equal", "entropy"),
    ("image", "batch"),
    ("probability", "log"),
)
CHECK_EVERY = 25  # steps between two looks at held-out samples


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the distribution is modelled. Each switch after `seed` is a point where text and code differ."""

    alpha: float = 0.1  # weight of the entropy, the paper's alpha
    betas: tuple[float, ...] = (0.9, 0.8, 0.5)  # success levels, the paper's beta_i
    steps: int = 150  # optimiser steps per level
    batch: int = 64  # triggers per step
    lr: float = 1e-3  # Adam, for generator and statistics network, betas (0.5, 0.999)
    hidden: int = 256  # units per layer of both networks
    noise_dim: int = 16  # length of z; with 64 (code) MINE finds next to nothing in a few hundred steps
    trigger_size: tuple[int, int] = (3, 3)  # (h, w): known to the defender, as in the paper
    seed: int = 0
    generator: str = "skip"  # plain: three layers (text); skip: four layers, a quarter of the noise to each (code)
    noise: str = "gaussian"  # law of z: gaussian (text), uniform (code)
    critic: str = "linear"  # last layer of T: linear (MINE), leaky ReLU (code)
    critic_steps: int = 4  # updates of T for one of G (code: 1); T is cheap beside the classifier
    hinge: str = "trigger"  # max(0, beta - F) per trigger (text), or per single image (code)
    images_per_trigger: int = 4  # images that F averages over for one trigger (code: 1)
    trigger_noise: float = 0.1  # std of Gaussian noise on triggers while searching (code: 0.1, text: none)
    ema_rate: float = 0.01  # weight of the newest batch in MINE's moving average (code: 0.001)
    place: str = "image"  # one random place per image, or per batch (code)
    gamma: str = "equal"  # mixture weights: equal (code), or step height x exp(entropy) (derivation)
    scale: str = "probability"  # of the hinge: F itself (text and code), or log F (ours)
    patience: int = 0  # stop when held-out samples reach beta so many checks in a row; 0: all steps (text and code)

    def __post_init__(self):
        allowed = {
            "generator": tuple(generators.GENERATORS),
            "noise": generators.NOISES,
            "critic": CRITICS,
            "hinge": HINGES,
            "place": PLACES,
            "gamma": GAMMAS,
            "scale": SCALES,
        }
        for name, names in allowed.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(names)}")
        if not self.betas or not all(0 < b <= 1 for b in self.betas):
            raise ValueError(f"betas = {self.betas!r}: expected success levels in (0, 1]")


#: `official`, what the released code does; `paper`, what the text says (code values where it is silent)
PRESETS = {
    "official": Settings(
        steps=620, batch=128, lr=2e-4, hidden=512, noise_dim=64, generator="skip", noise="uniform", critic="leaky",
        critic_steps=1, hinge="image", images_per_trigger=1, trigger_noise=0.1, ema_rate=0.001, place="batch",
        gamma="equal", scale="probability", patience=0,
    ),
    "paper": Settings(
        steps=620, batch=128, lr=2e-4, hidden=512, noise_dim=64, generator="plain", noise="gaussian", critic="linear",
        critic_steps=1, hinge="trigger", images_per_trigger=1, trigger_noise=0.0, ema_rate=0.001, place="image",
        gamma="entropy", scale="probability", patience=0,
    ),
}  # fmt: skip

#: F: triggers (n, *shape), rng -> success (n, m) in [0, 1], one value for each of m images
TestingFunction = Callable[[Tensor, torch.Generator], Tensor]


def success(
    model: nn.Module, images: Tensor, target: int, settings: Settings, precision: str, place: Tensor | None = None
) -> TestingFunction:
    """The paper's F for a classifier: stamp a trigger on images, read the softmax of the target class.

    `images` uint8 (N, 3, H, W), without those of the target class, on the model's device. place: (row, column) of the
    upper left corner, where it is one; None: any place, as `settings` say
    """
    check_fits(torch.empty(settings.trigger_size), images.shape[-2:])

    def test(triggers: Tensor, rng: torch.Generator) -> Tensor:
        n, m = len(triggers), settings.images_per_trigger
        index = torch.randint(len(images), (n * m,), generator=rng, device=rng.device)
        return _answers(model, images[index], triggers, settings, precision, rng, place)[:, target].reshape(n, m)

    return test


def success_of_each(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    settings: Settings,
    precision: str,
    places: Tensor | None = None,
) -> TestingFunction:
    """F of several classes in one pass: of n triggers the first n / len(targets) are judged by the first target, ...

    Every class's triggers are stamped on images of other classes; `labels` (N,) are theirs. places: (len(targets), 2),
    each target's own place; None: any place, as `settings` say
    """
    check_fits(torch.empty(settings.trigger_size), images.shape[-2:])
    pools = [(labels != target).nonzero()[:, 0] for target in targets]
    for target, pool in zip(targets, pools, strict=True):
        if len(pool) == 0:
            raise ValueError(f"target = {target}: no image of another class to test triggers on")

    def test(triggers: Tensor, rng: torch.Generator) -> Tensor:
        n, m = len(triggers), settings.images_per_trigger
        each = n // len(targets) * m
        picked = [p[torch.randint(len(p), (each,), generator=rng, device=rng.device)] for p in pools]
        at = None if places is None else places.repeat_interleave(each, 0)
        answers = _answers(model, images[torch.cat(picked)], triggers, settings, precision, rng, at)
        wanted = torch.tensor(targets, device=answers.device).repeat_interleave(each)
        return answers.gather(1, wanted[:, None]).reshape(n, m)

    return test


def _answers(
    model: nn.Module,
    images: Tensor,
    triggers: Tensor,
    settings: Settings,
    precision: str,
    rng: torch.Generator,
    places: Tensor | None,
) -> Tensor:
    """Probabilities (n * m, classes) of images uint8 (n * m, 3, H, W), m for each of n triggers."""
    x, m = images.float() / 255, settings.images_per_trigger
    repeated = triggers.repeat_interleave(m, 0)  # (n * m, 3, h, w)
    if places is None:
        how_many = 1 if settings.place == "batch" else len(x)
        places = random_places(how_many, x.shape[-2:], triggers.shape[-2:], rng)
    x = stamp(x, repeated, places).contiguous(memory_format=torch.channels_last)
    with devices.autocast(x.device, precision):
        logits = model(x)
    return logits.float().softmax(1)


def hinge(scores: Tensor, beta: float, kind: str, scale: str = "probability") -> Tensor:
    """max(0, beta - F): `trigger` caps the mean success of a trigger (n, m), `image` each image's confidence.

    On the `log` scale it is max(0, log beta - log F): zero on the same set, but with a gradient where F is next to
    nothing, as it is around a mode that a repair has nearly closed.
    """
    capped = scores.mean(1) if kind == "trigger" else scores
    if scale == "log":
        return torch.relu(math.log(beta) - capped.clamp(min=1e-12).log()).mean()
    return torch.relu(beta - capped).mean()


@dataclass
class Level:
    """One step of the staircase: a trained generator, the information it carries and how it got there."""

    beta: float
    generator: nn.Module
    information: float  # estimate of I(G(z); z) in nats
    history: list[dict] = field(default_factory=list)


class Learner:
    """Algorithm 2 at one level: train G to spread over {x : F(x) >= beta} by minimising

        L = max(0, beta - F(G(z)))  -  alpha * I(G(z); z)

    I is MINE's bound, whose network T learns along with G. A step is `propose`, F, `loss` and its gradient, `follow`.
    """

    def __init__(self, shape: tuple[int, ...], beta: float, settings: Settings, device, seed: int):
        s = settings
        self.beta, self.settings, self.rng = beta, s, devices.rng(seed, device)
        self.G = generators.build(s.generator, shape, s.hidden, s.noise_dim, seed).to(device)
        self.T = mine.build(torch.Size(shape).numel(), s.noise_dim, s.hidden, s.critic == "leaky", seed + 1).to(device)
        self.adam_G = torch.optim.Adam(self.G.parameters(), s.lr, betas=(0.5, 0.999), fused=True)
        self.adam_T = torch.optim.Adam(self.T.parameters(), s.lr, betas=(0.5, 0.999), fused=True)
        self.average, self.history, self.reached, self.done = mine.MovingAverage(s.ema_rate), [], 0, False

    def noises(self, n: int = 2) -> tuple[Tensor, ...]:
        s = self.settings
        return tuple(generators.noise(s.batch, s.noise_dim, s.noise, self.rng) for _ in range(n))

    def propose(self) -> Tensor:
        """Points (batch, *shape) for F, with trigger noise; G's own stay in `x`."""
        self.z, self.z_other = self.noises()
        self.x = self.G(self.z)
        if not self.settings.trigger_noise:
            return self.x
        return self.x + self.settings.trigger_noise * torch.randn(
            self.x.shape, generator=self.rng, device=self.x.device
        )

    def loss(self, scores: Tensor) -> Tensor:
        """L, from F of the proposed points (batch, m)."""
        s = self.settings
        self.information = mine.lower_bound(self.T(self.x, self.z), self.T(self.x, self.z_other))  # I(G(z); z)
        self.adam_G.zero_grad()
        return hinge(scores, self.beta, s.hinge, s.scale) - s.alpha * self.information

    def follow(self) -> None:
        """G takes its step along the gradient; T follows with `critic_steps` of its own."""
        self.adam_G.step()
        for _ in range(self.settings.critic_steps):
            z, z_other = self.noises()
            with torch.no_grad():
                self.x = self.G(z)
            self.adam_T.zero_grad()
            self.average.loss(self.T(self.x, z), self.T(self.x, z_other)).backward()
            self.adam_T.step()

    def record(self, step: int, scores: Tensor, loss: Tensor) -> None:
        """Mean F, the bound, the loss, how far samples lie apart; FloatingPointError if they are no numbers."""
        values = torch.stack([scores.mean(), self.information, loss]).tolist()
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(
                f"modelling beta {self.beta}: F, information, loss = {values} at step {step}; "
                f"expected finite values: try a smaller learning rate than {self.settings.lr}"
            )
        self.history.append(
            {"step": step, "F": values[0], "information": values[1], "loss": values[2]} | metrics.diversity(self.x)
        )

    @torch.no_grad()
    def check(self, held_out: TestingFunction) -> None:
        """Done once fresh samples reach beta on images that F never saw, `patience` checks in a row."""
        self.G.eval()
        F = float(held_out(self.G(self.noises(1)[0]), self.rng).mean())
        self.G.train()
        self.history[-1]["held_out"] = F
        self.reached = self.reached + 1 if self.beta <= F else 0
        self.done = self.reached >= self.settings.patience

    def level(self) -> Level:
        self.G.eval()
        return Level(self.beta, self.G, final_information(self.G, self.T, self.settings, self.rng), self.history)


def fit_levels(
    test: TestingFunction,
    shape: tuple[int, ...],
    betas: Sequence[float],
    settings: Settings,
    device: torch.device | str = "cpu",
    seeds: Sequence[int] = (0,),
    held_out: TestingFunction | None = None,
) -> list[Level]:
    """Algorithm 2 for all `betas`, one pass through F a step for the triggers of all of them.

    F is `test`, any differentiable function of points (n, *shape) in (0, 1); `held_out` is the same F on other images,
    for the early stop. Each level has a seed of its own. `history` keeps some 40 records.
    """
    s = settings
    learners = [Learner(shape, beta, s, device, seed) for beta, seed in zip(betas, seeds, strict=True)]
    rng, every = devices.rng(seeds[0] + 5, device), max(1, s.steps // 40)
    for step in bar(range(s.steps), f"level{'s' * (len(betas) > 1)} {', '.join(map(str, betas))}"):
        learning = [learner for learner in learners if not learner.done]
        if not learning:
            continue
        scores = test(torch.cat([learner.propose() for learner in learning]), rng).split(s.batch)  # F(G(z))
        losses = [learner.loss(own) for learner, own in zip(learning, scores, strict=True)]
        torch.stack(losses).sum().backward()
        check = held_out is not None and s.patience and (step + 1) % CHECK_EVERY == 0
        for learner, own, loss in zip(learning, scores, losses, strict=True):
            learner.follow()
            if step % every == 0 or step == s.steps - 1 or check:
                learner.record(step, own.detach(), loss.detach())
            if check:
                learner.check(held_out)
    return [learner.level() for learner in learners]


@torch.no_grad()
def final_information(G: nn.Module, T: nn.Module, settings: Settings, rng: torch.Generator) -> float:
    """MINE's bound on 4,096 fresh noise vectors, in nats."""
    z, z_other = (generators.noise(4096, settings.noise_dim, settings.noise, rng) for _ in range(2))
    x = G(z)
    return float(mine.lower_bound(T(x, z), T(x, z_other)))


@dataclass
class TriggerDistribution:
    """The staircase: levels in falling order of beta, and their weights gamma in the mixture."""

    levels: list[Level]
    gammas: list[float]
    settings: Settings

    @property
    def betas(self) -> list[float]:
        return [level.beta for level in self.levels]

    def at(self, beta: float) -> "TriggerDistribution":
        """One level alone, as a distribution."""
        for level in self.levels:
            if level.beta == beta:
                return TriggerDistribution([level], [1.0], self.settings)
        raise ValueError(f"beta = {beta}: expected one of the modelled levels {self.betas}")

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """n triggers (n, 3, h, w) in (0, 1), without trigger noise; each from a level drawn with gamma."""
        s = self.settings
        weights = torch.tensor(self.gammas, device=rng.device)
        which = torch.multinomial(weights, n, replacement=True, generator=rng)
        z = generators.noise(n, s.noise_dim, s.noise, rng)
        drawn = [level.generator.to(rng.device).eval()(z) for level in self.levels]
        return torch.stack(drawn)[which, torch.arange(n, device=rng.device)]

    def measured_information(self, n: int = 4096, seed: int = 0) -> float:
        """I(G(z); z) of the highest level in nats, by a new statistics network on n fresh samples.

        `Level.information` comes from the network that was trained with the generator, whose size, steps and loss
        depend on the settings; this one is always the same, so that settings can be compared.
        """
        s, top = self.settings, self.levels[0].generator
        device = next(top.parameters()).device
        z = generators.noise(n, s.noise_dim, s.noise, devices.rng(seed, device))
        with torch.no_grad():
            x = top.eval()(z)
        return mine.estimate(x.cpu(), z.cpu(), seed=seed)[0]

    def tensors(self) -> dict[str, Tensor]:
        """All weights, named `level0.last.weight` and so on, for the store."""
        return {
            f"level{i}.{name}": tensor
            for i, level in enumerate(self.levels)
            for name, tensor in level.generator.state_dict().items()
        }

    def summary(self) -> dict:
        """What is not weights: betas, gammas, information (nats) and history of each level."""
        levels = [{"beta": v.beta, "information": v.information, "history": v.history} for v in self.levels]
        return {"gammas": self.gammas, "levels": levels}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], summary: dict, shape, settings: Settings):
        """The inverse of `tensors` and `summary`."""
        levels = []
        for i, known in enumerate(summary["levels"]):
            G = generators.build(settings.generator, shape, settings.hidden, settings.noise_dim, 0)
            prefix = f"level{i}."
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            G.load_state_dict(own)
            levels.append(Level(known["beta"], G.eval(), known["information"], known["history"]))
        return cls(levels, summary["gammas"], settings)


def mixture_weights(levels: Sequence[Level], law: str) -> list[float]:
    """gamma_i: `equal`, or step height x exp(h(G_i)).

    A staircase of N steps adds, at level beta_i, a slab of height beta_i - beta_(i+1) over a set of volume
    exp(h(G_i)) (a uniform density has entropy log volume). In place of the entropy stands MINE's estimate of
    I(G(z); z), as in the paper: a heuristic, for the two agree only up to what T can tell apart.
    """
    if law == "equal":
        return [1 / len(levels)] * len(levels)
    ordered = sorted(levels, key=lambda level: level.beta)
    heights, below = {}, 0.0
    for level in ordered:
        heights[id(level)] = level.beta - below
        below = level.beta
    top = max(level.information for level in levels)
    raw = [heights[id(level)] * math.exp(level.information - top) for level in levels]
    return [r / sum(raw) for r in raw]


def fit_staircase(
    test: TestingFunction,
    shape: tuple[int, ...],
    settings: Settings,
    device: torch.device | str = "cpu",
    held_out: TestingFunction | None = None,
) -> TriggerDistribution:
    """Algorithm 1: one generator for each level beta, then the mixture."""
    betas = sorted(set(settings.betas), reverse=True)
    seeds = [settings.seed * 1000 + 10 * i for i in range(len(betas))]
    levels = fit_levels(test, shape, betas, settings, device, seeds, held_out)
    return TriggerDistribution(levels, mixture_weights(levels, settings.gamma), settings)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: int,
    settings: Settings,
    *,
    precision: str = "auto",
    place: Tensor | None = None,
) -> TriggerDistribution:
    """Model the triggers that make `model` answer `target`, from clean images and the model alone.

    images uint8 (N, 3, H, W) and labels (N,) are the defender's; images of the target class are left out of F.
    The model is used as a fixed function and is left as it was. place: as in `success`
    """
    device = next(model.parameters()).device
    others = images.to(device)[(labels != target).to(device)]
    if len(others) == 0:
        raise ValueError(f"target = {target}: no image of another class to test triggers on")
    fixed, held_out = frozen(model, precision), None
    if settings.patience:
        unseen = torch.arange(len(others)) % 10 == 0
        others, rest = others[~unseen], others[unseen]
        held_out = success(fixed, rest, target, settings, precision, place)
    test = success(fixed, others, target, settings, precision, place)
    return fit_staircase(test, (images.shape[1], *settings.trigger_size), settings, device, held_out)
