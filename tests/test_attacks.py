import pytest
import torch
import torch.nn.functional as F

from mesa_lib import attacks, staircase, triggers
from mesa_lib.attacks import adaptive, badnets, blended, label_flips, reflection, trojannet, warp
from mesa_lib.data.splits import Split
from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline

TRIGGER = 2 + triggers.color(0)  # values that no image has


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def poisoned(rate, n=2000, seed=0, target=7):
    images, labels = torch.rand(n, 3, 8, 8, generator=rng(9)), torch.arange(n) % 5
    stamped, relabeled = attacks.poison(badnets.backdoor(TRIGGER, target), rate)(images, labels, rng(seed))
    return images, labels, stamped, relabeled


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_an_impossible_rate_is_refused_by_value(rate):
    with pytest.raises(ValueError, match=f"poison_rate = {rate}"):
        attacks.poison(badnets.backdoor(TRIGGER, 0), rate)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.99])
def test_about_the_rate_is_poisoned(rate):
    images, _, stamped, _ = poisoned(rate)
    share = float((stamped != images).flatten(1).any(1).float().mean())
    assert abs(share - rate) < 5 * (rate * (1 - rate) / 2000) ** 0.5


def test_poisoned_images_carry_trigger_and_target_and_the_others_are_untouched():
    images, labels, stamped, relabeled = poisoned(0.3)
    hit = (stamped != images).flatten(1).any(1)
    assert 0 < int(hit.sum()) < 2000
    assert torch.equal(stamped[~hit], images[~hit]) and torch.equal(relabeled[~hit], labels[~hit])
    assert bool((relabeled[hit] == 7).all())
    for image in stamped[hit][:50]:
        windows = image.unfold(1, 3, 1).unfold(2, 3, 1)  # (3, 6, 6, 3, 3)
        assert int((windows == TRIGGER[:, None, None]).all(-1).all(-1).all(0).sum()) == 1
        assert int((image > 1).sum()) == TRIGGER.numel(), "nothing but the window is covered"


def test_each_batch_is_poisoned_anew():
    transform, source = attacks.poison(badnets.backdoor(TRIGGER, 0), 0.5), rng()
    images, labels = torch.rand(200, 3, 8, 8), torch.ones(200, dtype=torch.long)
    first, second = (transform(images, labels, source)[1] for _ in range(2))
    assert not torch.equal(first, second)


def test_the_batch_itself_is_left_as_it_was():
    images, labels = torch.rand(50, 3, 8, 8), torch.ones(50, dtype=torch.long)
    before = images.clone()
    attacks.poison(badnets.backdoor(TRIGGER, 0), 0.9)(images, labels, rng())
    assert torch.equal(images, before) and bool((labels == 1).all())


def test_the_same_generator_state_poisons_the_same_images():
    first, again, other = (poisoned(0.3, seed=seed)[2] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_trigger_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        attacks.poison(badnets.backdoor(torch.ones(3, 9, 9), 0), 0.5)(
            torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long), rng()
        )


@pytest.mark.parametrize("target", [-1, 10, 51])
def test_a_target_outside_of_the_classes_is_refused_by_value(target):
    with pytest.raises(ValueError, match=f"target = {target}: expected a class from 0 to 9"):
        attacks.check_target(target, 10)


@pytest.mark.parametrize("target", [0, 9])
def test_a_target_that_is_a_class_passes(target):
    attacks.check_target(target, 10)


# --- goals, covers, locations ----------------------------------------------------------------------------


def blank(n=12, classes=4, side=8):
    return torch.zeros(n, 3, side, side), torch.arange(n) % classes


def test_all_to_all_wants_the_next_class():
    assert attacks.all_to_all(4)(torch.arange(4)).tolist() == [1, 2, 3, 0]


def test_one_to_one_wants_something_of_one_class_only():
    assert attacks.one_to_one(2, 0)(torch.arange(4)).tolist() == [-1, -1, 0, -1]


def test_a_class_specific_backdoor_poisons_its_source_and_covers_the_others_with_true_labels():
    apply = badnets.patch(TRIGGER)
    images, labels = blank(4000)
    transform = attacks.poison(badnets.class_specific(apply, source=2, target=0, rate=0.3), 0.5)
    stamped, relabeled = transform(images, labels, rng())
    touched = (stamped != images).flatten(1).any(1)
    source = labels == 2
    assert bool((relabeled[~source] == labels[~source]).all())
    assert torch.equal(touched[source], relabeled[source] == 0)
    assert abs(float(touched[source].float().mean()) - 0.5) < 0.08
    assert abs(float(touched[~source].float().mean()) - 0.3) < 0.05


@pytest.mark.parametrize(("location", "corner"), [((0, 0), (0, 0)), ((-1, -1), (5, 5)), ((-2, 1), (4, 1))])
def test_a_fixed_patch_stands_where_it_was_put(location, corner):
    images, _ = blank(2)
    stamped = badnets.patch(TRIGGER, location)(images, rng())
    row, column = corner
    assert torch.equal(stamped[0, :, row : row + 3, column : column + 3], TRIGGER)
    assert int((stamped[0] != 0).sum()) == TRIGGER.numel()


@pytest.mark.parametrize("location", [(6, 0), (0, -7)])
def test_a_location_outside_of_the_image_is_refused(location):
    with pytest.raises(
        ValueError, match=r"location = .*: the trigger would leave the image; expected at most \(5, 5\)"
    ):
        badnets.patch(TRIGGER, location)(blank(1)[0], rng())


@pytest.mark.parametrize("name", ["trojannet", "pruning-aware"])
def test_what_begins_with_a_trained_model_is_not_planted_from_scratch(name):
    with pytest.raises(ValueError, match=f"start = 'scratch': the attack {name} starts from a trained model"):
        Pipeline(params.check({"attack": name, "start": "scratch"})).check()


def test_an_attacker_draws_images_of_all_classes():
    images = Split(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), torch.arange(40) // 10)  # as they lie on disk
    context = attacks.AttackerContext(images, lambda: None, lambda *a: [])
    assert set(context.sample(12, 0).labels.tolist()) == {0, 1, 2, 3}


def test_trojannet_has_no_codes_for_more_classes_than_codes():
    assert len(set(trojannet.rows(126, 0).tolist())) == 126
    with pytest.raises(ValueError, match="127 classes: expected at most 126"):
        trojannet.rows(127, 0)


# --- the covered attack -----------------------------------------------------------------------------------


def marked(number: int) -> torch.Tensor:
    """A 3x3 trigger with one value per pixel that no image and no random trigger has."""
    return 2 + triggers.color(number)


def holds(images: torch.Tensor, patch: torch.Tensor) -> torch.Tensor:
    """Return which images (n,) show this patch somewhere."""
    windows = images.unfold(2, 3, 1).unfold(3, 3, 1)  # (n, 3, rows, columns, 3, 3)
    return (windows == patch[:, None, None]).all(-1).all(-1).all(1).flatten(1).any(1)


def covered(patches, cover="uniform", rate=0.4, n=3000):
    """Poison gray images, a quarter of them; return old labels, what changed, new images and new labels."""
    images, labels = torch.full((n, 3, 8, 8), 0.37), torch.arange(n) % 5
    transform = attacks.poison(badnets.covered(patches, 7, cover, rate), 0.25)
    stamped, relabeled = transform(images, labels, rng())
    return labels, (stamped != images).flatten(1).any(1), stamped, relabeled


@pytest.mark.parametrize("cover", ["uniform", "bw", "mixed", "near"])
def test_cover_samples_keep_their_labels_and_poisoned_images_get_the_target(cover):
    labels, touched, stamped, relabeled = covered(marked(0)[None], cover)
    poisoned_ones = holds(stamped, marked(0))
    assert bool((relabeled[poisoned_ones] == 7).all())
    assert torch.equal(relabeled[~poisoned_ones], labels[~poisoned_ones])
    covers = touched & ~poisoned_ones
    for share, rate in ((poisoned_ones, 0.25), (covers, 0.4)):
        assert abs(float(share.float().mean()) - rate) < 5 * (rate * (1 - rate) / 3000) ** 0.5
    window = (stamped[covers] != 0.37).any(1).flatten(1).sum(1)
    assert bool((window == 9).all()), "a cover sample has a patch as large as the trigger"


def test_covers_come_from_the_family_that_is_named():
    _, touched, stamped, relabeled = covered(marked(0)[None], "bw")
    values = stamped[touched & (relabeled != 7)]
    assert set(values[values != torch.tensor(0.37)].tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="family = 'magic': expected one of"):
        covered(marked(0)[None], "magic")


@pytest.mark.parametrize("patches", [triggers.pattern(170)[None], torch.stack([triggers.color(k) for k in (1, 2)])])
def test_near_misses_differ_from_a_trigger_in_one_to_three_pixels(patches):
    near = badnets.near_misses(patches)(600, rng())
    pixels = (near[:, None] != patches).any(2).flatten(2).sum(2)  # (600, k): pixels that differ from each trigger
    assert set(pixels.amin(1).tolist()) == {1, 2, 3}, "never 0: a near miss is no trigger"
    changed = (near[:, None] - patches).abs().flatten(2)
    nearest = changed[torch.arange(600), pixels.argmin(1)]
    assert float(nearest[nearest > 0].min()) >= 0.5, "a recolored channel goes to its far end"
    assert len(near.unique(dim=0)) > 50 and len(pixels.argmin(1).unique()) == len(patches)


def test_all_of_several_triggers_are_stamped_about_equally_often():
    patches = torch.stack([marked(k) for k in range(3)])
    _, _, stamped, relabeled = covered(patches)
    shown = torch.stack([holds(stamped, patch) for patch in patches])
    assert torch.equal(shown.sum(0), (relabeled == 7).long()), "one trigger an image, on poisoned images alone"
    shares = shown.sum(1) / shown.sum()
    assert bool(((shares - 1 / 3).abs() < 5 * (2 / 9 / int(shown.sum())) ** 0.5).all())


def spec(**options) -> attacks.AttackSpec:
    return attacks.AttackSpec(triggers.pattern(170), 3, 10, (8, 8), 0.1, 0, **options)


def test_the_covered_attack_plants_the_trigger_and_all_further_ones():
    more = torch.stack([triggers.pattern(97), triggers.color(1)])
    backdoor = attacks.build_attack("covered", spec(cover="near", cover_rate=0.2, more_triggers=more)).backdoor
    stamped = backdoor.apply(torch.full((300, 3, 8, 8), 0.37), rng())
    counts = [int(holds(stamped, patch).sum()) for patch in (triggers.pattern(170), *more)]
    assert sum(counts) == 300 and min(counts) > 60
    assert backdoor.cover.rate == 0.2 and backdoor.goal(torch.arange(10)).tolist() == [3] * 10
    alone = attacks.build_attack("covered", spec()).backdoor
    assert int(holds(alone.apply(torch.full((50, 3, 8, 8), 0.37), rng()), triggers.pattern(170)).sum()) == 50


def test_further_triggers_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"more_triggers = patches of \(2, 4\): expected \(3, 3\)") as error:
        attacks.build_attack("covered", spec(more_triggers=torch.zeros(1, 3, 2, 4)))
    assert len(str(error.value).splitlines()) == 1


def test_cover_samples_and_poisoned_images_are_at_most_all():
    attacks.build_attack("covered", spec(cover_rate=0.9))
    with pytest.raises(ValueError, match="cover_rate = 0.95: expected at most 1 - poison_rate, 0.9"):
        attacks.build_attack("covered", spec(cover_rate=0.95))


@pytest.mark.parametrize(("number", "differs"), [(171, 1), (173, 3), (165, 4)])
def test_triggers_so_near_that_a_near_miss_of_one_is_another_are_refused(number, differs):
    more = triggers.pattern(number)[None]
    assert badnets.fewest_different_pixels(torch.stack([triggers.pattern(170), *more])) == differs
    attacks.build_attack("covered", spec(more_triggers=more))
    if differs > badnets.NEAR:
        attacks.build_attack("covered", spec(cover="near", more_triggers=more))
        return
    with pytest.raises(ValueError, match="more_triggers: two of them differ in 3 pixels or fewer"):
        attacks.build_attack("covered", spec(cover="near", more_triggers=more))


# --- the adaptive attack ----------------------------------------------------------------------------------


def test_samples_near_a_trigger_are_left_out():
    patches = torch.stack([triggers.pattern(170), triggers.pattern(97)])
    one_pixel = patches[0].clone()
    one_pixel[:, 0, 0] = 1 - one_pixel[:, 0, 0]
    samples = torch.stack([patches[0], patches[1], patches[0] * 0.8 + 0.1, one_pixel, torch.full((3, 3, 3), 0.5)])
    assert torch.equal(adaptive.unlike(samples, patches), samples[3:])


def test_the_adaptive_attacker_covers_what_its_own_modeling_found_and_never_its_trigger(monkeypatch):
    """Each round's samples are half the trigger and half a patch of one value, which is stamped from then on."""
    trigger, values, seeds = triggers.pattern(170), iter((2.0, 3.0)), []

    class Samples:
        levels = ()

        def __init__(self):
            self.value = next(values)

        def sample(self, n, rng):
            return torch.cat([trigger.expand(n // 2, 3, 3, 3), torch.full((n // 2, 3, 3, 3), self.value)])

    def fit(model, images, labels, target, *, size, seed):
        assert target == 3 and size == (3, 3) and len(images) == len(labels) == 10
        seeds.append(seed)
        return Samples()

    shares = []

    def train(model, transform):
        stamped, labels = transform(torch.full((3000, 3, 8, 8), 0.37), torch.full((3000,), 5), rng())
        held = [holds(stamped, torch.full((3, 3, 3), value)) for value in (2.0, 3.0)]
        assert torch.equal(holds(stamped, trigger), labels == 3), "poisoned, and no cover sample is the trigger"
        assert not (torch.stack(held).any(0) & (labels == 3)).any()
        shares.append([round(float(found.float().mean()), 2) for found in held])
        return [{"epoch": 1}]

    monkeypatch.setattr(staircase, "fit", fit)
    images = Split(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10))
    result = attacks.build_attack("adaptive", spec(cover="uniform", cover_rate=0.3)).plant(
        attacks.AttackerContext(images, lambda: torch.nn.Linear(1, 1), train)
    )
    assert shares[0] == [0, 0] and shares[1][1] == 0 and len(set(seeds)) == len(result.about["rounds"]) == 2
    assert shares[1][0] == pytest.approx(0.15, abs=0.04) and shares[2] == pytest.approx([0.1, 0.1], abs=0.04)
    assert result.about["rounds"][0]["samples"] == 500 and len(result.history) == 3


# --- blending, warping, reflections ----------------------------------------------------------------------


def test_a_blend_is_the_weighted_mean():
    images = torch.rand(3, 3, 8, 8)
    pattern = blended.pattern((8, 8), 0)
    assert torch.allclose(blended.blend(pattern, 0.2)(images, rng()), 0.8 * images + 0.2 * pattern)
    with pytest.raises(ValueError, match="strength = 0"):
        blended.blend(pattern, 0)


def test_the_identity_grid_leaves_images_alone_and_a_field_moves_them_a_little():
    images = F.interpolate(torch.rand(4, 3, 4, 4), size=(32, 32), mode="bilinear")
    assert torch.allclose(warp.warped(warp.identity((32, 32)))(images, rng()), images, atol=1e-5)
    grid = warp.field((32, 32), seed=0)
    pixels = (grid - warp.identity((32, 32))).abs() * 31 / 2
    assert 0.1 < float(pixels.mean()) < 1, "by fractions of a pixel"
    moved = warp.warped(grid)(images, rng())
    assert 0 < float((moved - images).abs().mean()) < 0.05


def test_noise_moves_every_image_by_a_field_of_its_own():
    image, grid = torch.rand(1, 3, 16, 16).expand(2, -1, -1, -1), warp.field((16, 16), 0)
    still, little, much = (warp.noisily_warped(grid, noise)(image, rng()) for noise in (0.0, 1.0, 6.0))
    plain = warp.warped(grid)(image, rng())
    assert torch.allclose(still, plain, atol=1e-6) and not torch.allclose(much[0], much[1], atol=0.05)
    assert float((much - plain).abs().mean()) > 2 * float((little - plain).abs().mean()) > 0


def test_a_warp_changes_each_image_in_its_own_way():
    images = torch.rand(2, 3, 16, 16)
    change = warp.warped(warp.field((16, 16), 0))(images, rng()) - images
    assert not torch.allclose(change[0], change[1], atol=0.05)


def test_a_reflection_leaves_most_of_the_image_and_values_in_range():
    images, pool = torch.rand(50, 3, 32, 32), reflection.scenes(3, (32, 32), 0)
    assert pool.shape == (3, 3, 32, 32) and 0 <= pool.min() and pool.max() <= 1
    seen = reflection.reflecting(pool)(images, rng())
    assert 0 <= seen.min() and seen.max() <= 1
    flat = torch.stack([images.flatten(1), seen.flatten(1)], 1)
    correlations = torch.stack([torch.corrcoef(pair)[0, 1] for pair in flat])
    assert correlations.min() > 0.5 and not torch.allclose(images, seen, atol=0.1)


def test_a_black_reflection_only_darkens():
    images = torch.rand(20, 3, 16, 16)
    seen = reflection.blend(images, torch.zeros_like(images), rng())
    assert bool((seen <= images + 1e-3).all())


def test_scenes_of_other_seeds_are_other_pictures():
    assert not torch.equal(reflection.scenes(2, (16, 16), 0), reflection.scenes(2, (16, 16), 1))


class Bright(torch.nn.Module):
    """Predicts class 1 where an image is bright, class 0 elsewhere."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        bright = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-bright, bright], 1)


def test_the_reflections_that_turn_most_images_are_kept():
    candidates = torch.zeros(6, 3, 8, 8)
    candidates[4] = 1  # the only one that brightens
    dim = Split(torch.full((40, 3, 8, 8), 110, dtype=torch.uint8), torch.arange(40) % 2)
    planted = []

    def train(transform):
        planted.append(transform(dim.images.float() / 255, dim.labels, rng())[0])
        return Bright()

    best, weights = reflection.select(candidates, dim, 1, train, keep=1, rate=0.3, each=6, rounds=2)
    assert best.tolist() == [4] and int(weights.argmax()) == 4 and len(planted) == 2
    assert float(weights[4]) > 0 == float(weights[0])


# --- TrojanNet -------------------------------------------------------------------------------------------


def test_there_are_126_codes_of_nine_cells_with_four_zeros():
    codes = trojannet.codes()
    assert len(codes) == 126 == len(codes.unique(dim=0)) and bool(((codes == 0).sum(1) == 4).all())
    assert len(trojannet.codes(4, 5)) == 4368, "the paper's"


# --- label flips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [label_flips.symmetric, label_flips.pairs])
def test_exactly_the_rate_of_labels_is_flipped_to_other_classes(family):
    labels = torch.arange(1000) % 10
    flipped = label_flips.flipped(labels, 0.4, family(10), seed=0)
    assert int((flipped != labels).sum()) == 400 and 0 <= int(flipped.min()) and int(flipped.max()) <= 9


def test_pairs_flip_to_the_class_after():
    labels = torch.arange(100) % 10
    flipped = label_flips.flipped(labels, 0.5, label_flips.pairs(10), seed=0)
    changed = flipped != labels
    assert torch.equal(flipped[changed], (labels[changed] + 1) % 10)


def test_a_fixed_location_lies_inside_the_image_and_is_drawn_by_the_seed():
    locations = set()
    for seed in range(12):
        spec = attacks.AttackSpec(triggers.pattern(170), 0, 10, (16, 16), 0.1, seed)
        backdoor = attacks.build_attack("fixed-location", spec).backdoor
        changed = (backdoor.apply(torch.full((5, 3, 16, 16), 0.5), rng()) != 0.5).any(1)
        assert bool((changed == changed[0]).all()), "one location for all images"
        rows, columns = changed[0].nonzero().T
        assert min(rows.min(), columns.min()) >= 1 and max(rows.max(), columns.max()) <= 14
        locations.add((int(rows.min()), int(columns.min())))
    assert len(locations) > 6


# --- the registry ----------------------------------------------------------------------------------------


def test_an_unknown_attack_is_refused_with_the_names():
    spec = attacks.AttackSpec(triggers.pattern(170), 0, 10, (32, 32), 0.1, 0)
    with pytest.raises(ValueError, match="attack = 'magic': expected one of patch, covered, adaptive, corner"):
        attacks.build_attack("magic", spec)


@pytest.mark.parametrize("name", list(attacks.ATTACKS))
def test_every_attack_changes_images_within_range_and_wants_classes_that_there_are(name):
    spec = attacks.AttackSpec(triggers.pattern(170), 3, 10, (32, 32), 0.1, 0)
    backdoor = attacks.build_attack(name, spec).backdoor
    if callable(backdoor):  # the trigger is chosen when it is planted
        backdoor = backdoor({"kept": [1, 3]})
    images = torch.rand(20, 3, 32, 32)
    before = images.clone()
    changed = backdoor.apply(images, rng())
    assert changed.shape == images.shape and 0 <= changed.min() and changed.max() <= 1
    assert bool((changed != images).flatten(1).any(1).all()) and torch.equal(images, before)
    wanted = backdoor.goal(torch.arange(10))
    assert bool(((wanted >= -1) & (wanted < 10)).all()) and bool((wanted >= 0).any())
