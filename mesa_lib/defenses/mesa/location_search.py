"""Where on the image a patch would have to be, for each class.

A backdoor that answers at one place only is silent almost everywhere. Three steps look for the place, each for all
classes at once:

1. random patches of extreme colors at a grid of places, forward passes only: where are images turned, or at least
   moved toward a class? A trigger's neighbors among them do so at its place;
2. at the most likely of these places a patch is learned for each class, by some steps of gradient descent;
3. the same at the neighbors of the best.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import triggers
from mesa_lib.data import Split
from mesa_lib.defenses.base import DefenderView
from mesa_lib.models.inference import batch_size_for


def location_grid(image_size: tuple[int, int], size: tuple[int, int], stride: int) -> Tensor:
    """Every `stride`-th place that fits, and the last row and column -> (P, 2)."""
    rows, columns = (
        torch.tensor(sorted({*range(0, full - own + 1, stride), full - own}))
        for full, own in zip(image_size, size, strict=True)
    )
    return torch.cartesian_prod(rows, columns)


@torch.no_grad()
def probe(
    given: DefenderView, locations: Tensor, size: tuple[int, int], each: int, clean: Split | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What `each` random patches of extreme colors do to images of other classes -> three times (classes, P).

    How many images they turn into the class (of 1), the mean probability of the class, and the mean change of its
    logit. Each patch is stamped on one image, drawn from `clean` (None: all that are given).
    """
    rng, clean, found = devices.rng(given.seed + 3), clean or given.clean, []
    images, labels = clean.images.cpu(), clean.labels.cpu()
    for some in locations.split(max(1, batch_size_for(images.shape[1:], 512) // each)):
        n = len(some) * each
        index = torch.randint(len(images), (n,), generator=rng)
        drawn = triggers.random_triggers(n, "binary", rng, size)
        x = images[index].float() / 255
        stamped = triggers.stamp(x, drawn, some.repeat_interleave(each, 0))
        before, after = (given.model(part.to(given.device)).float().cpu() for part in (x, stamped))
        turned = F.one_hot(after.argmax(1), given.classes).float()
        of_patches = torch.stack([turned, after.softmax(1), after - before])  # (3, n, classes)
        of_patches[:, torch.arange(n), labels[index]] = torch.nan  # of images of the class itself nothing is asked
        found.append(of_patches.reshape(3, len(some), each, given.classes).nanmean(2).nan_to_num())
    return tuple(torch.cat(found, 1).transpose(1, 2))


def optimize_patches(
    given: DefenderView, locations: Tensor, size: tuple[int, int], clean: Split, steps: int = 20, images_each: int = 8
) -> Tensor:
    """The mean probability of each class under a patch that was learned for it at each of its places -> (classes, P).

    places: (classes, P, 2). All patches are learned at the same time (of large images those of some classes), on fresh
    images of other classes in every step; the probability is that on further draws of them.
    """
    together = batch_size_for((locations.shape[1] * images_each, *clean.images.shape[1:]), len(locations))
    groups = torch.arange(len(locations)).split(together)
    return torch.cat([_learnt(given, own, locations[own], size, clean, steps, images_each) for own in groups])


def _learnt(
    given: DefenderView, targets: Tensor, locations: Tensor, size: tuple[int, int], clean: Split, steps: int, images_each: int
) -> Tensor:
    """`learned` for these classes, at their places (len(targets), P, 2), all in one batch."""
    rng = devices.rng(given.seed + 4 + 1000 * int(targets[0]))
    classes, number = locations.shape[:2]
    pools = [(clean.labels.cpu() != k).nonzero()[:, 0] for k in targets]
    images, m = clean.images.cpu(), images_each
    raw = torch.randn(classes, number, 1, 3, *size, generator=rng).requires_grad_()
    adam = torch.optim.Adam([raw], 0.3)
    at = locations[:, :, None].expand(-1, -1, m, -1).flatten(0, 2)
    wanted = targets.repeat_interleave(number * m)

    def shown() -> Tensor:
        """Logits of the patches on images drawn now."""
        index = torch.cat([pool[torch.randint(len(pool), (number * m,), generator=rng)] for pool in pools])
        patches = (2 * raw).sigmoid().expand(-1, -1, m, -1, -1, -1).flatten(0, 2)
        x = triggers.stamp(images[index].float() / 255, patches, at)
        return given.model(x.to(given.device)).float().cpu()

    for _ in range(steps):
        adam.zero_grad()
        (F.cross_entropy(shown(), wanted, reduction="sum") / m).backward()
        adam.step()
    with torch.no_grad():
        sure = shown().softmax(1).gather(1, wanted[:, None])
    return sure.reshape(classes, number, m).mean(2)


def find_locations(
    given: DefenderView,
    size: tuple[int, int],
    stride: int = 2,
    each: int = 40,
    shortlist: int = 12,
    best: int = 3,
    clean: Split | None = None,
) -> Tensor:
    """For every class the place at which patches do most -> (classes, 2).

    shortlist: how many places of the grid are tried by each of two measures (probability, change of the logit), 0: the
    place at which random patches turn most images, without anything learned; best: how many of these have their
    neighbors tried; clean: the images for all of it (None: all that are given)
    """
    clean = clean or given.clean
    locations, rng = location_grid(given.image_size, size, stride), devices.rng(given.seed + 6)
    turned, sure, moved = (_untied(found, rng) for found in probe(given, locations, size, each, clean))
    if not shortlist:
        return locations[turned.argmax(1)]
    shortlist = min(shortlist, len(locations))
    first = locations[torch.cat([found.topk(shortlist, 1).indices for found in (sure, moved)], 1)]
    tried = _untied(optimize_patches(given, first, size, clean), rng)
    top = first.gather(
        1, tried.topk(min(best, tried.shape[1]), 1).indices[..., None].expand(-1, -1, 2)
    )  # (classes, best, 2)
    near = (top[:, :, None] + torch.cartesian_prod(*2 * [torch.arange(-1, 2)])).flatten(1, 2).clamp(min=0)
    near = torch.minimum(near, torch.tensor(given.image_size) - torch.tensor(size))
    tried = _untied(optimize_patches(given, near, size, clean), rng)
    return near.gather(1, tried.argmax(1)[:, None, None].expand(-1, -1, 2))[:, 0]


def _untied(values: Tensor, rng: torch.Generator) -> Tensor:
    """The same with equal ones in a drawn order."""
    return values + 1e-6 * torch.rand(values.shape, generator=rng)
