"""Search for triggers with forward passes only: random triggers, improved by selection and mutation."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import triggers
from mesa_lib.models.frozen import frozen
from mesa_lib.success import TestingFunction, asr_of_triggers, other_classes


@dataclass(frozen=True)
class TriggerSearch:
    """An evolutionary search: random triggers, of which the best survive and have mutated children.

    All triggers of a generation are stamped on the same images at the same locations and scored by the mean probability
    of the target class, so that scores differ by the trigger and not by the draw of images.

    Attributes:
        candidates: random triggers of the first generation.
        generations: after the first.
        parents: triggers that survive a generation.
        children: mutated triggers in each generation.
        images: that each trigger is stamped on in a generation.
        keep: triggers that are returned.
        family: of the first generation (`triggers.random_triggers`); `mixed` draws no black-white patterns as such.
    """

    candidates: int = 1024
    generations: int = 12
    parents: int = 32
    children: int = 192
    images: int = 16
    keep: int = 16
    family: str = "mixed"

    @torch.no_grad()
    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        target: int,
        *,
        size: tuple[int, int],
        seed: int,
        precision: str = "auto",
        location: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the best triggers (keep, 3, h, w), highest ASR first, and their ASR (keep,) on newly drawn images.

        Args:
            model: images (B, 3, H, W) in [0, 1] -> logits.
            images, labels: uint8 (N, 3, H, W) and (N,), clean; those of the target class are left out.
            target: the class that the model should predict.
            size: height and width of the triggers.
            location: row and column (2,) at which all are stamped; None: random locations.
        """
        device = next(model.parameters()).device
        rng = devices.rng(devices.derive_seed(seed, "search"), device)
        others = images.to(device)[other_classes(labels, target).to(device)]
        score = _scoring(frozen(model, precision), others, target, self.images, size, precision, location)
        pool = triggers.random_triggers(self.candidates, self.family, rng, size)
        scores, times = score(pool, rng), torch.ones(len(pool), device=device)
        for _ in range(self.generations):
            best = scores.topk(min(self.parents, len(pool))).indices
            pool, scores, times = pool[best], scores[best], times[best]
            young = mutate(pool, self.children, rng)
            new = score(torch.cat([pool, young]), rng)
            scores = (scores * times + new[: len(best)]) / (times + 1)  # survivors are scored again each time
            easier = scores.mean() - new[: len(best)].mean()  # these images may be harder than those before
            pool, scores = torch.cat([pool, young]), torch.cat([scores, new[len(best) :] + easier])
            times = torch.cat([times + 1, torch.ones(len(young), device=device)])
        best = pool[scores.topk(self.keep).indices]
        rates = asr_of_triggers(
            model, images, labels, best, target, images_per_trigger=256,
            seed=devices.derive_seed(seed, "rates"), precision=precision, location=location,
        )  # fmt: skip
        order = rates.argsort(descending=True)
        return best.cpu()[order], rates[order]


def _scoring(
    network: nn.Module, images: Tensor, target: int, number: int, size: tuple[int, int], precision: str,
    location: Tensor | None,
) -> TestingFunction:  # fmt: skip
    """Return a function of triggers (n, 3, h, w) -> mean probability of `target` (n,), all on the same drawn images."""

    def score(candidates: Tensor, rng: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (number,), generator=rng, device=rng.device)
        if location is None:
            locations = triggers.random_locations(number, images.shape[-2:], size, rng)
        else:
            locations = location.to(rng.device).expand(number, 2)
        x, scores = images[index].float() / 255, []
        for group in candidates.split(64):
            n = len(group)
            patches = group.repeat_interleave(number, 0)
            stamped = triggers.stamp(x.repeat(n, 1, 1, 1), patches, locations.repeat(n, 1))
            with devices.autocast(rng.device, precision):
                logits = network(stamped.contiguous(memory_format=torch.channels_last))
            scores.append(logits.float().softmax(1)[:, target].reshape(n, number).mean(1))
        return torch.cat(scores)

    return score


def rate_of_best(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: int,
    searched: Tensor,
    *,
    seed: int,
    precision: str = "auto",
    location: Tensor | None = None,
) -> float:
    """Return the ASR of the first of the `searched` triggers on 1,000 newly drawn images.

    The trigger was selected as the best of several, so its rate in the search is too high.
    """
    (rate,) = asr_of_triggers(
        model, images, labels, searched[:1], target, images_per_trigger=1000, seed=seed, precision=precision,
        location=location,
    )  # fmt: skip
    return float(rate)


def mutate(parents: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Return n children (n, 3, h, w) of triggers (k, 3, h, w) sorted best first; better ones have more children.

    Three in ten are crossed with another parent, pixel by pixel. Then one pixel gets a random color, or one of the
    eight extreme ones, or that of another pixel; or all pixels get a little noise.
    """
    options = {"generator": rng, "device": rng.device}
    ranks = torch.randint(len(parents), (n, 2), **options).amin(1)
    others = parents[torch.randint(len(parents), (n,), **options)]
    crossed = (torch.rand(n, 1, *parents.shape[-2:], **options) < 0.5) & (torch.rand(n, 1, 1, 1, **options) < 0.3)
    children = torch.where(crossed, others, parents[ranks]).flatten(2)  # (n, 3, h * w)
    every = torch.arange(n, device=rng.device)
    pixel, other = torch.randint(children.shape[2], (2, n), **options)
    color = torch.rand(n, 3, **options)
    colors = torch.stack([color, color.round(), children[every, :, other]])
    noisy = (children + 0.15 * torch.randn(children.shape, **options)).clamp(0, 1)
    kind = torch.randint(4, (n,), **options)
    children[every, :, pixel] = colors[kind % 3, every]
    return torch.where((kind == 3)[:, None, None], noisy, children).reshape(n, *parents.shape[1:])
