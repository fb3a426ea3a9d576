"""Search for triggers by forward passes: random triggers, improved by selection and mutation."""

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import triggers
from mesa_lib.models.frozen import frozen
from mesa_lib.success import asr_of_triggers

#: what a search starts from (`triggers.random_triggers`): families that do not draw black-white patterns as such
FAMILY = "mixed"


@torch.no_grad()
def search_triggers(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: int,
    *,
    family: str = FAMILY,
    size: tuple[int, int] = (3, 3),
    first: int = 1024,
    generations: int = 12,
    parents: int = 32,
    children: int = 192,
    images_each: int = 16,
    keep: int = 16,
    seed: int = 0,
    precision: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Random triggers of a law (`triggers.random`), improved by selection and mutation; forward passes only.

    All triggers of a generation are stamped on the same images at the same places, and judged by the mean probability
    of the target class: what separates them is then the trigger and not the draw. Returns the `keep` best
    (keep, 3, h, w), best first, and their rates of success (keep,) on images drawn anew, since selection flatters.
    """
    device = next(model.parameters()).device
    rng, fixed = devices.rng(seed, device), frozen(model, precision)
    others = images.to(device)[(labels != target).to(device)]

    def judge(drawn: Tensor) -> Tensor:
        pick = torch.randint(len(others), (images_each,), generator=rng, device=device)
        locations = triggers.random_locations(images_each, others.shape[-2:], size, rng)
        x, scores = others[pick].float() / 255, []
        for some in drawn.split(64):
            n = len(some)
            stamped = triggers.stamp(x.repeat(n, 1, 1, 1), some.repeat_interleave(images_each, 0), locations.repeat(n, 1))
            with devices.autocast(device, precision):
                logits = fixed(stamped.contiguous(memory_format=torch.channels_last))
            scores.append(logits.float().softmax(1)[:, target].reshape(n, images_each).mean(1))
        return torch.cat(scores)

    drawn = triggers.random_triggers(first, family, rng, size)
    scores, seen = judge(drawn), torch.ones(first, device=device)
    for _ in range(generations):
        best = scores.topk(min(parents, len(drawn))).indices
        drawn, scores, seen = drawn[best], scores[best], seen[best]
        young = mutate(drawn, children, rng)
        fresh = judge(torch.cat([drawn, young]))
        scores = (scores * seen + fresh[: len(best)]) / (seen + 1)  # what survives is judged again each time
        easier = scores.mean() - fresh[: len(best)].mean()  # these images may be harder than those before
        drawn, scores = torch.cat([drawn, young]), torch.cat([scores, fresh[len(best) :] + easier])
        seen = torch.cat([seen + 1, torch.ones(children, device=device)])
    found = drawn[scores.topk(keep).indices]
    rates = success.asr_of_triggers(
        model, images, labels, found, target, images_per_trigger=256, seed=seed, precision=precision
    )
    order = rates.argsort(descending=True)
    return found[order], rates[order]


def rate_of_best(
    model: nn.Module, images: Tensor, labels: Tensor, target: int, found: Tensor, *, seed: int, precision: str = "auto"
) -> float:
    """Success of the first trigger of `found` on 1,000 images drawn anew: it was the best of several, by luck too."""
    (rate,) = success.asr_of_triggers(
        model, images, labels, found[:1], target, images_per_trigger=1000, seed=seed, precision=precision
    )
    return float(rate)


def mutate(parents: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """n children (n, 3, h, w) of triggers sorted best first; the better ones have more.

    Three in ten are crossed with another parent, pixel by pixel. Then one pixel gets a random color, or one of the
    eight extreme ones, or that of another pixel; or all get a little noise.
    """
    options = {"generator": rng, "device": rng.device}
    ranks = torch.randint(len(parents), (n, 2), **options).amin(1)
    others = parents[torch.randint(len(parents), (n,), **options)]
    crossed = (torch.rand(n, 1, *parents.shape[-2:], **options) < 0.5) & (torch.rand(n, 1, 1, 1, **options) < 0.3)
    drawn = torch.where(crossed, others, parents[ranks]).flatten(2)  # (n, 3, h * w)
    each, (pixel, other) = torch.arange(n, device=rng.device), torch.randint(drawn.shape[2], (2, n), **options)
    color = torch.rand(n, 3, **options)
    colors = torch.stack([color, color.round(), drawn[each, :, other]])
    noisy = (drawn + 0.15 * torch.randn(drawn.shape, **options)).clamp(0, 1)
    kind = torch.randint(4, (n,), **options)
    drawn[each, :, pixel] = colors[kind % 3, each]
    return torch.where((kind == 3)[:, None, None], noisy, drawn).reshape(n, *parents.shape[1:])
