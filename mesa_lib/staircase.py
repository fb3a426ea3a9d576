"""MESA, the max-entropy staircase approximator (Qiao, Yang, Li, NeurIPS 2019): Algorithms 1 and 2.

The unknown density of valid triggers is cut at success levels beta_1..beta_N. For each level, a generator is trained to
spread as widely as it can over the triggers that reach the level; the mixture of the N generators is the model. Read
from top to bottom: the hinge loss, one level (Algorithm 2), the staircase (Algorithm 1).
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import generator as generators
from mesa_lib import mine
from mesa_lib.distribution import Level, TriggerDistribution, mixture_weights
from mesa_lib.models.frozen import frozen
from mesa_lib.progress import progress_bar
from mesa_lib.settings import Settings
from mesa_lib.success import TestingFunction, held_out_split, log_success, success_function
from mesa_lib.triggers import diversity

CHECK_EVERY = 25  # steps between two checks on held-out images


def hinge(success: Tensor, beta: float, kind: str, scale: str = "probability") -> Tensor:
    """Return max(0, beta - F), averaged over triggers, or over single images.

    Args:
        success: F (n, m) of n triggers on m images each, in [0, 1].
        beta: the level in (0, 1].
        kind: `trigger` caps the mean success of a trigger, `image` the success on each image.
        scale: `log` gives max(0, log beta - log F) instead: zero on the same set, but steep where F is near 0.
    """
    F = success.mean(1) if kind == "trigger" else success
    if scale == "log":
        return torch.relu(math.log(beta) - log_success(F)).mean()
    return torch.relu(beta - F).mean()


class Learner:
    """Algorithm 2 at one level: train G to spread over {x : F(x) >= beta} by minimizing

        L = max(0, beta - F(G(z)))  -  alpha * I(G(z); z)

    where I is MINE's lower bound, whose network T learns along with G. A step is `propose`, F, `loss`, gradient,
    `update`; `fit_levels` is the loop.
    """

    def __init__(
        self, shape: Sequence[int], beta: float, settings: Settings, device: torch.device | str, seed: int,
        start: Tensor | None = None,
    ):  # fmt: skip
        """`start`: a trigger (3, h, w) around which samples scatter at first; None: random weights."""
        s = self.settings = settings
        self.beta, self.rng = beta, devices.rng(devices.derive_seed(seed, "noise"), device)
        seeds = [devices.derive_seed(seed, network) for network in ("generator", "statistics network")]
        self.G = generators.build(s.generator, shape, s.hidden, s.noise_dim, seeds[0]).to(device)
        if start is not None:
            generators.start_around(self.G, start, self.draw_noise(1024))
        x_size = torch.Size(shape).numel()
        self.T = mine.build(x_size, s.noise_dim, s.hidden, leaky=s.critic == "leaky", seed=seeds[1]).to(device)
        self.adam_G = torch.optim.Adam(self.G.parameters(), s.modeling_lr, betas=(0.5, 0.999), fused=True)
        self.adam_T = torch.optim.Adam(self.T.parameters(), s.modeling_lr, betas=(0.5, 0.999), fused=True)
        self.average, self.history, self.reached, self.done = mine.MovingAverage(s.ema_rate), [], 0, False

    def draw_noise(self, n: int | None = None) -> Tensor:
        """Return z (n, noise_dim); n: None, the triggers of a step."""
        s = self.settings
        return generators.noise(n or s.triggers_per_step, s.noise_dim, s.noise, self.rng)

    def propose(self) -> Tensor:
        """Begin a step: return points (triggers_per_step, *shape) for F, with trigger noise; G(z) is kept as `x`."""
        self.adam_G.zero_grad()
        self.z, self.z_other = self.draw_noise(), self.draw_noise()
        self.x = self.G(self.z)
        if not self.settings.trigger_noise:
            return self.x
        noise = torch.randn(self.x.shape, generator=self.rng, device=self.x.device)
        return self.x + self.settings.trigger_noise * noise

    def loss(self, success: Tensor) -> Tensor:
        """Return L from F of the proposed points (triggers_per_step, m)."""
        s = self.settings
        self.information = mine.lower_bound(self.T(self.x, self.z), self.T(self.x, self.z_other))  # I(G(z); z)
        return hinge(success, self.beta, s.hinge, s.hinge_scale) - s.alpha * self.information

    def update(self) -> None:
        """Take G's step along the gradient, then `critic_steps` steps of T."""
        self.adam_G.step()
        for _ in range(self.settings.critic_steps):
            z, z_other = self.draw_noise(), self.draw_noise()
            with torch.no_grad():
                x = self.G(z)
            self.adam_T.zero_grad()
            self.average.loss(self.T(x, z), self.T(x, z_other)).backward()
            self.adam_T.step()

    def record(self, step: int, success: Tensor, loss: Tensor) -> None:
        """Keep mean F, the bound, the loss and the diversity; FloatingPointError if they are not finite."""
        values = torch.stack([success.mean(), self.information, loss]).tolist()
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(
                f"modeling beta {self.beta}: F, information, loss = {values} at step {step}; "
                f"expected finite values: try a smaller learning rate than {self.settings.modeling_lr}"
            )
        record = {"step": step, "F": values[0], "information": values[1], "loss": values[2]}
        self.history.append(record | diversity(self.x.detach()))

    @torch.no_grad()
    def check(self, held_out: TestingFunction) -> None:
        """After `record`: stop once fresh samples reach beta on images that F never saw, `patience` times in a row."""
        self.G.eval()
        F = float(held_out(self.G(self.draw_noise()), self.rng).mean())
        self.G.train()
        self.history[-1]["held_out"] = F
        self.reached = self.reached + 1 if self.beta <= F else 0
        self.done = self.reached >= self.settings.patience

    @torch.no_grad()
    def level(self, held_out: TestingFunction | None = None) -> Level:
        """Return the trained level, with MINE's bound and F on held-out images, both of fresh samples."""
        z, z_other = self.draw_noise(4096), self.draw_noise(4096)
        x = self.G.eval()(z)
        information = float(mine.lower_bound(self.T(x, z), self.T(x, z_other)))
        success = None if held_out is None else float(held_out(x[:256], self.rng).mean())
        return Level(self.beta, self.G, information, self.history, success)


def fit_levels(
    F: TestingFunction, shape: Sequence[int], betas: Sequence[float], settings: Settings, *, seeds: Sequence[int],
    device: torch.device | str = "cpu", held_out: TestingFunction | None = None, start: Tensor | None = None,
) -> list[Level]:  # fmt: skip
    """Run Algorithm 2 for all `betas` at once: each step tests the triggers of all levels in one pass through F.

    Args:
        F: points (n, *shape) in (0, 1), rng -> success (n, m) in [0, 1]; differentiable, see `success`.
        shape: shape of one point.
        betas, seeds: one of each per level; betas may repeat (several target classes).
        held_out: the same F on other images, for `Level.success` and the early stop by `settings.patience`.
        start: a point around which the samples of all generators scatter at first; None: random weights.
    """
    s = settings
    learners = [Learner(shape, beta, s, device, seed, start) for beta, seed in zip(betas, seeds, strict=True)]
    rng, every = devices.rng(devices.derive_seed(seeds[0], "images"), device), max(1, s.steps // 40)
    for step in progress_bar(range(s.steps), f"level{'s' * (len(betas) > 1)} {', '.join(map(str, betas))}"):
        learning = [learner for learner in learners if not learner.done]
        if not learning:
            continue
        points = torch.cat([learner.propose() for learner in learning])
        success = F(points, rng).split(s.triggers_per_step)  # F(G(z))
        losses = [learner.loss(part) for learner, part in zip(learning, success, strict=True)]
        torch.stack(losses).sum().backward()
        check = held_out is not None and s.patience and (step + 1) % CHECK_EVERY == 0
        for learner, part, loss in zip(learning, success, losses, strict=True):
            learner.update()
            if step % every == 0 or step == s.steps - 1 or check:
                learner.record(step, part.detach(), loss.detach())
            if check:
                learner.check(held_out)
    return [learner.level(held_out) for learner in learners]


def fit_staircase(
    F: TestingFunction, shape: Sequence[int], settings: Settings, *, seed: int = 0, **options
) -> TriggerDistribution:
    """Run Algorithm 1: one generator for each level beta, then the mixture; options: as in `fit_levels`."""
    seeds = [devices.derive_seed(seed, "level", i) for i in range(len(settings.betas))]
    levels = fit_levels(F, shape, settings.betas, settings, seeds=seeds, **options)
    return TriggerDistribution(levels, mixture_weights(levels, settings.gamma), settings)


def fit(
    model: nn.Module, images: Tensor, labels: Tensor, target: int, settings: Settings | None = None, *,
    size: tuple[int, int] = (3, 3), seed: int = 0, precision: str = "auto", location: Tensor | None = None,
    start: Tensor | None = None,
) -> TriggerDistribution:  # fmt: skip
    """Model the triggers that make `model` predict `target`, from clean images and the model alone.

    Args:
        model: images (B, 3, H, W) in [0, 1] -> logits; left unchanged.
        images, labels: uint8 (N, 3, H, W) and (N,), the defender's; images of the target class are left out of F, and
            so is a tenth of the others, on which `Level.success` is measured.
        settings: None, the defaults.
        size: height and width of the trigger, known to the defender, as in the paper.
        location: (row, column) at which triggers are stamped; None: random locations.
        start: a trigger (3, h, w) around which the samples of all generators scatter at first; None: random weights.
    """
    settings, device = settings or Settings(), next(model.parameters()).device
    parts = held_out_split(images.to(device), labels.to(device), target)
    options = {"size": size, "precision": precision, "locations": None if location is None else location.reshape(1, 2)}
    F_on = partial(success_function, frozen(model, precision), targets=[target], settings=settings, **options)
    F, held_out = (F_on(*part) for part in parts)
    return fit_staircase(
        F, (images.shape[1], *size), settings, seed=seed, device=device, held_out=held_out, start=start
    )
