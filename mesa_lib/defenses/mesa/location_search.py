"""The search for the location at which a patch works, for each class.

A backdoor with a fixed location does not respond to patches elsewhere. Three steps look for the location, each for all
classes at once:

1. Random patches of extreme colors are stamped at a grid of locations, with forward passes only. At the trigger's
   location, patches similar to the trigger make the model predict the class, or at least raise its logit.
2. At the most promising locations, one patch per class and location is optimized by a few steps of gradient descent.
3. Step 2 is repeated at the neighbors of the best locations.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import triggers
from mesa_lib.data.splits import Split
from mesa_lib.defenses.view import DefenderView
from mesa_lib.models.inference import batch_size_for


def location_grid(image_size: tuple[int, int], size: tuple[int, int], stride: int) -> Tensor:
    """Return every `stride`-th location at which a patch fits, and the last row and column -> (P, 2)."""
    rows, columns = (
        torch.tensor(sorted({*range(0, image_side - side + 1, stride), image_side - side}))
        for image_side, side in zip(image_size, size, strict=True)
    )
    return torch.cartesian_prod(rows, columns)


@torch.no_grad()
def probe(
    view: DefenderView,
    locations: Tensor,
    size: tuple[int, int],
    patches_per_location: int,
    clean: Split | None = None,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what random patches of extreme colors do to images of other classes, at each location.

    Args:
        view: gradient access suffices; only forward passes are used.
        locations: (P, 2), row and column of the upper left corner.
        size: height and width of the patches.
        patches_per_location: each is stamped on one image.
        clean: where images are drawn from; None: all clean images of the view.
        before: the logits (N, classes) of these images; None: computed for each image as it is drawn.

    Returns:
        Three tensors (classes, P): the fraction of images predicted as the class, the mean probability of the class,
        and the mean change of its logit. Images of the class itself do not count.
    """
    rng, clean, parts = devices.rng(devices.derive_seed(view.seed, "location probe")), clean or view.clean, []
    images, labels = clean.images.cpu(), clean.labels.cpu()
    for group in locations.split(max(1, batch_size_for(images.shape[1:], 512) // patches_per_location)):
        n = len(group) * patches_per_location
        index = torch.randint(len(images), (n,), generator=rng)
        patches = triggers.random_triggers(n, "binary", rng, size)
        x = images[index].float() / 255
        stamped = triggers.stamp(x, patches, group.repeat_interleave(patches_per_location, 0))
        without = view.model(x.to(view.device)).float().cpu() if before is None else before[index]
        after = view.model(stamped.to(view.device)).float().cpu()
        hits = F.one_hot(after.argmax(1), view.classes).float()
        measures = torch.stack([hits, after.softmax(1), after - without])  # (3, n, classes)
        measures[:, torch.arange(n), labels[index]] = torch.nan  # images of the class itself do not count
        parts.append(measures.reshape(3, len(group), patches_per_location, view.classes).nanmean(2).nan_to_num())
    return tuple(torch.cat(parts, 1).transpose(1, 2))


def optimize_patches(
    view: DefenderView,
    locations: Tensor,
    size: tuple[int, int],
    clean: Split,
    steps: int = 20,
    images_per_patch: int = 8,
    labels: Tensor | None = None,
) -> Tensor:
    """Return the mean probability of each class under patches optimized for it -> (classes, P).

    All patches are optimized at the same time (with large images: those of some classes), on newly drawn images of
    other classes in each step; the probability is measured on further draws.

    Args:
        view: with gradient access.
        locations: (classes, P, 2); one patch is optimized for each class at each of its locations.
        size: height and width of the patches.
        clean: where images are drawn from.
        steps: of Adam.
        images_per_patch: images that each patch is stamped on in a step.
        labels: the classes, if `locations` has those of some classes only.
    """
    labels = torch.arange(len(locations)) if labels is None else labels
    per_class = (locations.shape[1] * images_per_patch, *clean.images.shape[1:])
    groups = torch.arange(len(locations)).split(batch_size_for(per_class, len(locations)))
    options = size, clean, steps, images_per_patch
    return torch.cat([_optimize(view, labels[group], locations[group], *options) for group in groups])


def _optimize(
    view: DefenderView,
    targets: Tensor,
    locations: Tensor,
    size: tuple[int, int],
    clean: Split,
    steps: int,
    images_per_patch: int,
) -> Tensor:
    """Do the work of `optimize_patches` for the classes `targets`, locations (len(targets), P, 2), in one batch."""
    rng = devices.rng(devices.derive_seed(view.seed, "patches at locations", int(targets[0])))
    classes, number = locations.shape[:2]
    pools = [(clean.labels.cpu() != k).nonzero()[:, 0] for k in targets]
    images, m = clean.images.cpu(), images_per_patch
    raw = torch.randn(classes, number, 1, 3, *size, generator=rng).requires_grad_()
    adam = torch.optim.Adam([raw], 0.3)
    corners = locations[:, :, None].expand(-1, -1, m, -1).flatten(0, 2)
    wanted = targets.repeat_interleave(number * m)

    def logits_on_new_images() -> Tensor:
        index = torch.cat([pool[torch.randint(len(pool), (number * m,), generator=rng)] for pool in pools])
        patches = (2 * raw).sigmoid().expand(-1, -1, m, -1, -1, -1).flatten(0, 2)
        x = triggers.stamp(images[index].float() / 255, patches, corners)
        return view.model(x.to(view.device)).float().cpu()

    for _ in range(steps):
        adam.zero_grad()
        (F.cross_entropy(logits_on_new_images(), wanted, reduction="sum") / m).backward()
        adam.step()
    with torch.no_grad():
        probability = logits_on_new_images().softmax(1).gather(1, wanted[:, None])
    return probability.reshape(classes, number, m).mean(2)


def find_locations(
    view: DefenderView,
    size: tuple[int, int],
    stride: int = 2,
    patches_per_location: int = 40,
    shortlist: int = 12,
    best: int = 3,
    clean: Split | None = None,
    labels: Sequence[int] | None = None,
) -> Tensor:
    """Return, for each class, the location at which patches have the largest effect -> (classes, 2).

    Args:
        view: with gradient access.
        size: height and width of the patches.
        stride: of the grid of the first step.
        patches_per_location: random patches at each location of the grid.
        shortlist: locations of the grid that each of two measures (probability, change of the logit) passes on to the
            second step; 0: the location at which random patches succeed most often, without the other steps.
        best: locations whose neighbors are tried in the third step.
        clean: images for all steps; None: all clean images of the view.
        labels: the classes whose location is returned, in this order; None: all.
    """
    labels = torch.arange(view.classes) if labels is None else torch.as_tensor(labels)
    clean, rng = clean or view.clean, devices.rng(devices.derive_seed(view.seed, "ties of locations"))
    grid = location_grid(view.image_size, size, stride)
    hits, probability, change = (_untied(m, rng)[labels] for m in probe(view, grid, size, patches_per_location, clean))
    if not shortlist:
        return grid[hits.argmax(1)]
    shortlist = min(shortlist, len(grid))
    first = grid[torch.cat([measure.topk(shortlist, 1).indices for measure in (probability, change)], 1)]
    scores = _untied(optimize_patches(view, first, size, clean, labels=labels), rng)
    highest = scores.topk(min(best, scores.shape[1]), 1).indices[..., None].expand(-1, -1, 2)
    top = first.gather(1, highest)  # (classes, best, 2)
    near = (top[:, :, None] + torch.cartesian_prod(*2 * [torch.arange(-1, 2)])).flatten(1, 2).clamp(min=0)
    near = torch.minimum(near, torch.tensor(view.image_size) - torch.tensor(size))
    scores = _untied(optimize_patches(view, near, size, clean, labels=labels), rng)
    return near.gather(1, scores.argmax(1)[:, None, None].expand(-1, -1, 2))[:, 0]


def _untied(values: Tensor, rng: torch.Generator) -> Tensor:
    """Return `values` with tiny noise, so that ties are broken at random."""
    return values + 1e-6 * torch.rand(values.shape, generator=rng)
