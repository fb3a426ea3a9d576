"""MINE: mutual information from samples alone (Belghazi et al., ICML 2018).

The Donsker-Varadhan bound, for any function T of two variables,

    I(x; z)  >=  E_joint[T(x, z)]  -  log E_marginals[exp T(x, z')]

becomes tight at the best T, which a small network learns. All values are in nats.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices


class StatisticsNetwork(nn.Module):
    """T: pairs of x (B, ...) and z (B, noise_dim) -> (B,).

    `leaky` applies a leaky ReLU to the output, as the released MESA code does. A critic should end linear: damping the
    negative side keeps T from its optimum.
    """

    def __init__(self, x_size: int, z_size: int, hidden: int = 512, leaky: bool = False):
        super().__init__()
        self.from_x = nn.Linear(x_size, hidden)
        self.from_z = nn.Linear(z_size, hidden, bias=False)
        self.middle = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)
        self.leaky = leaky

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        h = F.leaky_relu(self.from_x(x.flatten(1)) + self.from_z(z), 0.2)
        t = self.last(F.leaky_relu(self.middle(h), 0.2)).squeeze(1)
        return F.leaky_relu(t, 0.2) if self.leaky else t


def build(x_size: int, z_size: int, hidden: int, *, leaky: bool = False, seed: int) -> StatisticsNetwork:
    """Return an untrained statistics network; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StatisticsNetwork(x_size, z_size, hidden, leaky)


def log_mean_exp(t: Tensor) -> Tensor:
    """Return log(mean(exp t)) of t (B,), computed stably."""
    return torch.logsumexp(t, 0) - math.log(len(t))


def lower_bound(joint: Tensor, marginal: Tensor) -> Tensor:
    """Return the Donsker-Varadhan bound, in nats, from T on joint pairs (B,) and on mismatched pairs (B,)."""
    return joint.mean() - log_mean_exp(marginal)


class MovingAverage:
    """The bias-corrected gradient of MINE, equation 12: the mean of exp T over many batches instead of one.

    `rate` is the weight of the newest batch. The released MESA code uses 0.001; after 620 steps, 54% of the weight is
    then still on the first batch.
    """

    def __init__(self, rate: float):
        self.rate, self.log_mean = rate, None

    def loss(self, joint: Tensor, marginal: Tensor) -> Tensor:
        """Return a loss whose gradient ascends the bound: -(mean T - E[exp T] / running mean of E[exp T])."""
        now = log_mean_exp(marginal)
        if self.log_mean is None:
            self.log_mean = now.detach()
        else:
            old = self.log_mean + math.log1p(-self.rate)
            self.log_mean = torch.logaddexp(old, now.detach() + math.log(self.rate))
        return torch.exp(now - self.log_mean) - joint.mean()


def estimate(
    x: Tensor, z: Tensor, *, steps: int = 1500, batch_size: int = 512, hidden: int = 64, lr: float = 1e-3,
    ema_rate: float = 0.05, seed: int = 0,
) -> tuple[float, list[float]]:  # fmt: skip
    """Return the mutual information of paired samples x (N, ...) and z (N, d) in nats, and the bound at each step.

    T is trained on one half of the samples and the bound is evaluated on the other half, so memorizing samples does not
    raise the estimate: in expectation it is a lower bound.
    """
    x, z = x.flatten(1), z.flatten(1)
    rng = torch.Generator().manual_seed(seed)
    half = len(x) // 2
    critic = build(x.shape[1], z.shape[1], hidden, seed=seed)
    optimizer = torch.optim.Adam(critic.parameters(), lr)
    average, history = MovingAverage(ema_rate), []
    with devices.one_thread():  # networks this small are twice as fast on one
        for _ in range(steps):
            index = torch.randint(half, (batch_size,), generator=rng)
            other = torch.randint(half, (batch_size,), generator=rng)
            joint, marginal = critic(x[index], z[index]), critic(x[index], z[other])
            optimizer.zero_grad()
            average.loss(joint, marginal).backward()
            optimizer.step()
            history.append(float(lower_bound(joint.detach(), marginal.detach())))
    with torch.no_grad():
        x, z = x[half:], z[half:]
        shuffled = z[torch.randperm(len(z), generator=rng)]
        return float(lower_bound(critic(x, z), critic(x, shuffled))), history


def gaussian_information(correlation: float) -> float:
    """Return the mutual information of two unit Gaussians of this correlation: -1/2 log(1 - rho^2) nats."""
    return -0.5 * math.log1p(-(correlation**2))
