"""A short search that precedes the modeling: patches inverted for all classes at once, by a few optimizer steps.

Most classes of most models respond to no patch, and few steps show it. So a scan inverts patches of every class, and
models the classes on which these succeed most. Where a patch has a fixed location, the search looks for it, too:

1. Random patches of extreme colors at a grid of locations show where patches change outputs (`location_search.probe`).
2. At the most promising locations of each class, one patch is optimized for a few steps. The better ones go on.
3. So do the neighbors of the best location, for the classes that respond most, and once more, with more steps and a
   larger neighborhood, for the few classes on which patches succeed on most images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import triggers
from mesa_lib.data.splits import Split
from mesa_lib.defenses.mesa.location_search import location_grid, probe
from mesa_lib.defenses.view import DefenderView
from mesa_lib.models import inference

#: Adam's learning rate, for the numbers of which twice the sigmoid is the patch
RATE = 0.3
#: patches succeed on most images above this probability
MOST = 0.5


@dataclass(frozen=True)
class Effort:
    """How long the search takes.

    Attributes:
        starts, images, steps: at random locations: patches that start for each class, images on which each is stamped
            in a step, and optimizer steps.
        first_images, first_steps: the same for one patch at each location of the shortlist.
        kept, next_steps: locations of a class that go on, and their steps, on `images` images.
        refined: classes for which the neighbors of the best location are tried.
        judged: images on which the success of each patch is measured, forward only.
        shortlist: locations of the grid that each of two measures (probability, change of the logit) passes on.
        patches_per_location: random patches that are stamped at each location of the grid.
        finest, last_steps, last_images: at most so many classes, on which patches succeed on most images, get a larger
            neighborhood, with these steps on these images.
    """

    starts: int = 4
    images: int = 8
    steps: int = 15
    first_images: int = 8
    first_steps: int = 8
    kept: int = 6
    next_steps: int = 15
    refined: int = 4
    judged: int = 32
    shortlist: int = 12
    patches_per_location: int = 40
    finest: int = 2
    last_steps: int = 30
    last_images: int = 16


class Inversions:
    """Patches of several classes, optimized side by side: each pass holds those of all classes.

    Attributes:
        raw: (K, P, 3, h, w); the patches are the sigmoid of twice these numbers.
    """

    def __init__(self, view: DefenderView, clean: Split, labels: Sequence[int], size: tuple[int, int], number: int):
        """Start `number` random patches of this size for each of K classes.

        Args:
            view: with gradient access.
            clean: the images on which patches are stamped, those of other classes.
            labels: the classes that the model should predict.
        """
        self.view, self.clean, self.size = view, clean, size
        self.labels = torch.as_tensor(labels)
        self.rng = devices.rng(devices.derive_seed(view.seed, f"inverted patches {size}"))
        self.raw = torch.randn(len(labels), number, 3, *size, generator=self.rng)

    def choose(self, classes: Tensor, index: Tensor) -> None:
        """Keep some of the classes, by their position (k,), and of each some patches: `index` (k, p)."""
        self.labels, raw = self.labels[classes], self.raw[classes]
        self.raw = raw.gather(1, index[:, :, None, None, None].expand(-1, -1, *raw.shape[2:]))

    def optimize(self, steps: int, images: int, locations: Tensor | None = None) -> None:
        """Take steps of Adam that raise the probability of each patch's class.

        Args:
            steps: their number.
            images: on which each patch is stamped in a step; newly drawn each time.
            locations: (K, P, 2), where each patch is stamped; None: at random, newly drawn each time.
        """
        number = self.raw.shape[1]
        for group in self._groups(images):
            raw = self.raw[group].requires_grad_()
            adam = torch.optim.Adam([raw], RATE)
            for _ in range(steps):
                adam.zero_grad()
                logits = self._logits(raw, self.labels[group], images, None if locations is None else locations[group])
                wanted = self.labels[group].repeat_interleave(number * images)
                (F.cross_entropy(logits, wanted, reduction="sum") / images).backward()
                adam.step()
            self.raw[group] = raw.detach()

    @torch.no_grad()
    def probability(self, images: int, locations: Tensor | None = None) -> Tensor:
        """Return the mean probability of each patch's class on newly drawn images of other classes -> (K, P)."""
        parts = []
        for group in self._groups(images):
            where = None if locations is None else locations[group]
            logits = self._logits(self.raw[group], self.labels[group], images, where)
            wanted = self.labels[group].repeat_interleave(self.raw.shape[1] * images)
            parts.append(logits.softmax(1).gather(1, wanted[:, None]).reshape(len(group), -1, images).mean(2))
        return torch.cat(parts)

    def _groups(self, images: int) -> Sequence[Tensor]:
        """Return the positions of the classes, as many at a time as fit the memory."""
        shape = (self.raw.shape[1] * images, *self.clean.images.shape[1:])
        return torch.arange(len(self.labels)).split(inference.batch_size_for(shape, len(self.labels)))

    def _logits(self, raw: Tensor, labels: Tensor, images: int, locations: Tensor | None) -> Tensor:
        """Return the logits (K * P * images, classes) of stamped images, on the CPU."""
        number, clean = raw.shape[1], self.clean
        pools = [(clean.labels.cpu() != label).nonzero()[:, 0] for label in labels]
        draws = [pool[torch.randint(len(pool), (number * images,), generator=self.rng)] for pool in pools]
        x = clean.images.cpu()[torch.cat(draws)].float() / 255
        if locations is None:
            where = triggers.random_locations(len(x), x.shape[-2:], self.size, self.rng)
        else:
            where = locations.flatten(0, 1).repeat_interleave(images, 0)
        x = triggers.stamp(x, (2 * raw).sigmoid().flatten(0, 1).repeat_interleave(images, 0), where)
        return self.view.model(x.to(self.view.device)).float().cpu()


def at_random_locations(
    view: DefenderView, size: tuple[int, int], clean: Split, labels: Sequence[int], effort: Effort
) -> Tensor:
    """Return the probability that the best inverted patch of each class reaches at random locations -> (len(labels),).

    Args:
        view: with gradient access.
        size: height and width of the patches.
        clean: the images.
        labels: the classes.
        effort: of the search.
    """
    inversions = Inversions(view, clean, labels, size, effort.starts)
    inversions.optimize(effort.steps, effort.images)
    return inversions.probability(effort.judged).amax(1)


def at_best_locations(
    view: DefenderView, size: tuple[int, int], clean: Split, labels: Sequence[int], effort: Effort, stride: int = 2
) -> tuple[Tensor, Tensor]:
    """Return, for each class, the location at which an inverted patch does most, and what it reaches there.

    Args:
        view, size, clean, labels, effort: as in `at_random_locations`.
        stride: of the grid of locations.

    Returns:
        Locations (len(labels), 2), row and column; mean probability of the class (len(labels),).
    """
    labels, e = torch.as_tensor(labels), effort
    grid = location_grid(view.image_size, size, stride)
    before = inference.logits(view.model, clean.images)
    _, *measures = probe(view, grid, size, e.patches_per_location, clean, before)
    shortlist = min(e.shortlist, len(grid))
    at = grid[torch.cat([measure[labels].topk(shortlist, 1).indices for measure in measures], 1)]
    inversions = Inversions(view, clean, labels, size, at.shape[1])
    inversions.optimize(e.first_steps, e.first_images, at)
    kept = inversions.probability(e.first_images, at).topk(min(e.kept, at.shape[1]), 1).indices
    inversions.choose(torch.arange(len(labels)), kept)
    at = at.gather(1, kept[:, :, None].expand(-1, -1, 2))
    inversions.optimize(e.next_steps, e.images, at)
    reached, best = inversions.probability(e.judged, at).max(1)
    found = at[torch.arange(len(labels)), best]
    chosen = reached.topk(min(e.refined, len(labels))).indices
    near = neighbors(found[chosen], view.image_size, size)
    inversions.choose(chosen, best[chosen, None].expand(-1, near.shape[1]))
    inversions.optimize(e.next_steps, e.images, near)
    around, which = inversions.probability(e.judged, near).max(1)
    found[chosen], reached[chosen] = near[torch.arange(len(chosen)), which], around
    responding = [k for k in reached.argsort(descending=True).tolist() if reached[k] > MOST][: e.finest]
    if responding:
        found[responding], reached[responding] = _finest(view, size, clean, labels[responding], found[responding], e)
    return found, reached


def _finest(
    view: DefenderView, size: tuple[int, int], clean: Split, labels: Tensor, found: Tensor, effort: Effort
) -> tuple[Tensor, Tensor]:
    """Return better locations (K, 2) up to two pixels from those found, and what new patches reach there (K,)."""
    near = neighbors(found, view.image_size, size, 2)
    inversions = Inversions(view, clean, labels, size, near.shape[1])
    inversions.optimize(effort.last_steps, effort.last_images, near)
    reached, best = inversions.probability(2 * effort.judged, near).max(1)
    return near[torch.arange(len(labels)), best], reached


def neighbors(locations: Tensor, image_size: tuple[int, int], size: tuple[int, int], far: int = 1) -> Tensor:
    """Return each location and those up to `far` pixels away, inside the image: (K, 2) -> (K, (2 far + 1)^2, 2)."""
    near = locations[:, None] + torch.cartesian_prod(*2 * [torch.arange(-far, far + 1)])
    return torch.minimum(near.clamp(min=0), torch.tensor(image_size) - torch.tensor(size))


def passes(
    image_size: tuple[int, int],
    size: tuple[int, int],
    classes: int,
    effort: Effort,
    *,
    fixed_location: bool,
    stride: int,
) -> float:
    """Return the number of passes, forward and back, of one of the two searches for so many classes."""
    e = effort
    if not fixed_location:
        return classes * e.starts * (e.images * e.steps + e.judged / 3)
    tried = classes * e.kept + 9 * min(e.refined, classes)
    forward = (len(location_grid(image_size, size, stride)) * e.patches_per_location + tried * e.judged) / 3
    first = classes * 2 * e.shortlist * e.first_images * e.first_steps
    return forward + first + e.images * e.next_steps * tried
