import pytest
import torch

from mesa_lib import generator as generators

KINDS = sorted(generators.GENERATORS)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def build(kind, shape=(3, 2, 5), hidden=12, noise_dim=8, seed=0):
    return generators.build(kind, shape, hidden, noise_dim, seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 3, 3), (3, 2, 5), (2,)])
def test_triggers_have_the_shape_and_lie_between_0_and_1(kind, shape):
    x = build(kind, shape)(10 * torch.randn(50, 8, generator=rng()))
    assert x.shape == (50, *shape) and x.min() > 0 and x.max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_weights_follow_the_seed_and_leave_global_random_numbers_alone(kind):
    before = torch.random.get_rng_state()
    first, again, other = (build(kind, seed=seed).last.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_the_noise_matters(kind):
    z = torch.randn(16, 8, generator=rng(), requires_grad=True)
    (build(kind)(z) * torch.randn(16, 3, 2, 5, generator=rng(1))).sum().backward()
    assert bool((z.grad.abs().sum(0) > 1e-6).all())


@pytest.mark.parametrize(("kind", "layers"), [("plain", 3), ("skip", 4)])
def test_the_number_of_layers_is_the_published_one(kind, layers):
    assert sum(isinstance(m, torch.nn.Linear) for m in build(kind).modules()) == layers


def test_the_last_quarter_of_the_noise_enters_the_last_layer_directly():
    """With the hidden layers silenced, the skip generator depends on the last quarter and on nothing else."""
    G = build("skip").eval()
    with torch.no_grad():
        G.last.weight[:, :12] = 0
        z = torch.randn(4, 8, generator=rng())
        same_end, other_end = z.clone(), z.clone()
        same_end[:, :6] += 1
        other_end[:, 6:] += 1
        assert torch.equal(G(z), G(same_end)) and not torch.allclose(G(z), G(other_end))


def test_noise_distributions():
    gaussian = generators.noise(20000, 4, "gaussian", rng())
    uniform = generators.noise(20000, 4, "uniform", rng())
    assert gaussian.shape == uniform.shape == (20000, 4)
    assert abs(float(gaussian.mean())) < 0.02 and abs(float(gaussian.std()) - 1) < 0.02 and gaussian.min() < -3
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.01 and abs(float(uniform.std()) - 12**-0.5) < 0.01


@pytest.mark.parametrize("kind", generators.NOISES)
def test_noise_follows_its_generator(kind):
    first, again, other = (generators.noise(5, 4, kind, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="noise = 'cauchy'"):
        generators.noise(1, 4, "cauchy", rng())


def test_an_unknown_generator_is_refused():
    with pytest.raises(ValueError, match="generator = 'gan'"):
        build("gan")


@pytest.mark.parametrize("noise_dim", [6, 9])
def test_skip_needs_noise_in_four_parts(noise_dim):
    with pytest.raises(ValueError, match=f"noise_dim = {noise_dim}"):
        build("skip", noise_dim=noise_dim)
    assert build("plain", noise_dim=noise_dim).noise_dim == noise_dim


@pytest.mark.parametrize("kind", KINDS)
def test_samples_can_start_scattered_around_a_trigger(kind):
    trigger = torch.tensor([0.0, 1.0, 0.5]).reshape(3, 1, 1).expand(3, 2, 2)
    G = build(kind, (3, 2, 2), hidden=64, noise_dim=16)
    generators.start_around(G, trigger, torch.randn(500, 16, generator=rng(1)))
    x = G(torch.randn(2000, 16, generator=rng())).detach()
    low, high, middle = x.median(0).values.flatten(1).unbind()
    assert bool((low < 0.4).all() and (high > 0.6).all() and ((middle - 0.5).abs() < 0.15).all())
    assert float(x.std(0).mean()) > 0.2, "wide enough for the entropy to be seen"
