"""Small distributions over actions: samples from given noise and log-probabilities of given actions.

`torch.distributions` draws from the global generator. Here noise is an argument, so that a loss is a pure function
and training many seeds together equals training each alone. The last axis is the action's; leading axes are free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
BOUND = 1 - 1e-6  # actions are clamped to ±BOUND before atanh, because recorded actions lie at ±1, where it is infinite
FAR = 1_000.0
"""Distance in σ beyond which a tail gets no gradient. Its mass there is e^−500,000, and torch's gradient becomes wrong
by orders of magnitude, finally infinite or NaN."""


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.empty_like(x).normal_(generator=generator)


def normal_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, e^log_std) summed over the last axis. [*B, A] → [*B]."""
    z = (x - mean) * (-log_std).exp()
    return (-0.5 * (z.square() + LOG_2PI) - log_std).sum(-1)


def log_tanh_slope(u: Tensor) -> Tensor:
    """log d tanh(u)/du = log(1 − tanh²u) = 2(log 2 − u − softplus(−2u)), which is finite for every u."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


def multinomial(probs: Tensor, generator: torch.Generator | None) -> Tensor:
    """Sample indices with the given probabilities. [*B, n] → [*B]; `torch.multinomial` allows only one leading axis."""
    flat = torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1, generator=generator)
    return flat.reshape(probs.shape[:-1])


@dataclass(frozen=True, slots=True)
class Deterministic:
    """Point mass on one action."""

    value: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.value

    def mode(self) -> Tensor:
        return self.value

    def log_prob(self, actions: Tensor) -> Tensor:
        raise TypeError("a deterministic policy has no density: log_prob is undefined")


@dataclass(frozen=True, slots=True)
class Normal:
    """Diagonal Gaussian. mean, log_std: [*B, A]. With `clip`, samples and mode are clipped to [−1, 1]."""

    mean: Tensor
    log_std: Tensor
    clip: bool = False

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        actions = self.mean + self.log_std.exp() * _normal_like(self.mean, generator)
        return actions.clamp(-1, 1) if self.clip else actions

    def mode(self) -> Tensor:
        return self.mean.clamp(-1, 1) if self.clip else self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        return normal_log_prob(actions, self.mean, self.log_std)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * (1 + LOG_2PI)).expand_as(self.mean).sum(-1)


@dataclass(frozen=True, slots=True)
class ClippedNormal:
    """Diagonal Gaussian whose samples are clipped to [−1, 1]. mean, log_std: [*B, A].

    `log_prob` is that of the clipped action: at a bound, the log of the whole mass beyond it (Fujita & Maeda 2018,
    arXiv:1802.07564). A policy gradient therefore needs only the executed action. Entropy and divergence are those of
    the Gaussian before clipping, which have a closed form.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return (self.mean + self.log_std.exp() * _normal_like(self.mean, generator)).clamp(-1, 1)

    def mode(self) -> Tensor:
        return self.mean.clamp(-1, 1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """actions: [*B, A] in [−1, 1] → [*B]."""
        inverse_std = (-self.log_std).exp()
        z = (actions - self.mean) * inverse_std
        inside = -0.5 * (z.square() + LOG_2PI) - self.log_std
        beyond = torch.special.log_ndtr(torch.where(actions > 0, -z, z).clamp(-FAR, FAR))
        return torch.where(self.at_bound(actions), beyond, inside).sum(-1)

    @staticmethod
    def at_bound(actions: Tensor) -> Tensor:
        """True for dimensions that were clipped, i.e. lie within 1e-6 of a bound. [*B, A] → [*B, A]."""
        return actions.abs() >= BOUND

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * (1 + LOG_2PI)).expand_as(self.mean).sum(-1)

    def divergence(self, other: ClippedNormal) -> Tensor:
        """KL(self ‖ other) → [*B]."""
        variance, spread = (2 * self.log_std).exp(), (self.mean - other.mean).square()
        return (other.log_std - self.log_std + (variance + spread) * (-2 * other.log_std).exp() / 2 - 0.5).sum(-1)


@dataclass(frozen=True, slots=True)
class SquashedNormal:
    """tanh of a diagonal Gaussian (Haarnoja et al. 2018, appendix C). mean, log_std: [*B, A] before tanh."""

    mean: Tensor
    log_std: Tensor

    def rsample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [*N, *B, A] in (−1, 1) and their log π [*N, *B]. noise: N(0, 1), [*N, *B, A]."""
        u = self.mean + self.log_std.exp() * noise
        log_prob = (-0.5 * (noise.square() + LOG_2PI) - self.log_std - log_tanh_slope(u)).sum(-1)
        return u.tanh(), log_prob

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return (self.mean + self.log_std.exp() * _normal_like(self.mean, generator)).tanh()

    def mode(self) -> Tensor:
        return self.mean.tanh()

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π of actions in [−1, 1], which are clamped to ±BOUND. [*B, A] → [*B]."""
        u = torch.atanh(actions.clamp(-BOUND, BOUND))
        return normal_log_prob(u, self.mean, self.log_std) - log_tanh_slope(u).sum(-1)


@dataclass(frozen=True, slots=True)
class Categorical:
    """Categorical distribution. logits: [*B, n], −inf for illegal actions; actions are indices [*B]."""

    logits: Tensor

    @property
    def probs(self) -> Tensor:
        return self.logits.softmax(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return multinomial(self.probs, generator)

    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.logits.log_softmax(-1).gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        log_probs = self.logits.log_softmax(-1)
        return -(log_probs.exp() * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)

    def divergence(self, other: Categorical) -> Tensor:
        """KL(self ‖ other) → [*B]."""
        log_probs, others = self.logits.log_softmax(-1), other.logits.log_softmax(-1)
        ratio = torch.where(log_probs == -torch.inf, 0.0, log_probs - others)  # illegal actions add nothing
        return (log_probs.exp() * ratio).sum(-1)


@dataclass(frozen=True, slots=True)
class EpsilonGreedy:
    """ε-greedy: a uniformly random legal action with probability ε, else the best one. Actions are indices [*B].

    values: [*B, n]; legal: a mask that broadcasts to `values`, or None if every action is legal.
    """

    values: Tensor
    legal: Tensor | None
    epsilon: float

    @property
    def probs(self) -> Tensor:
        best = F.one_hot(self.mode(), self.values.shape[-1]).to(self.values.dtype)
        if self.legal is None:
            return self.epsilon / self.values.shape[-1] + (1 - self.epsilon) * best
        return self.epsilon * self.legal / self.legal.sum(-1, keepdim=True) + (1 - self.epsilon) * best

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        best = self.mode()
        explores = torch.empty_like(best, dtype=torch.bool).bernoulli_(self.epsilon, generator=generator)
        if not explores.any():  # the most frequent case with few environments
            return best
        if self.legal is None:
            other = torch.empty_like(best).random_(self.values.shape[-1], generator=generator)
        else:
            other = Categorical(torch.where(self.legal, 0.0, -torch.inf).expand_as(self.values)).sample(generator)
        return torch.where(explores, other, best)

    def mode(self) -> Tensor:
        values = self.values if self.legal is None else self.values.masked_fill(~self.legal, -torch.inf)
        return values.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1).log()


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniform distribution over a bounded Box. low, high: [*B, A]."""

    low: Tensor
    high: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.low + (self.high - self.low) * torch.empty_like(self.low).uniform_(generator=generator)

    def mode(self) -> Tensor:
        return (self.low + self.high) / 2

    def log_prob(self, actions: Tensor) -> Tensor:
        """−Σ log(high − low) inside the box, −∞ outside. [*B, A] → [*B]."""
        inside = ((actions >= self.low) & (actions <= self.high)).all(-1)
        return torch.where(inside, -(self.high - self.low).log().sum(-1), -torch.inf)


@dataclass(frozen=True, slots=True)
class UniformIntegers:
    """Uniform distribution over the legal actions of a Discrete space, `start … start + n − 1`. probs: [*B, n]."""

    probs: Tensor
    start: int

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.start + multinomial(self.probs, generator)

    def mode(self) -> Tensor:
        return self.start + self.probs.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.probs.log().gather(-1, (actions - self.start).unsqueeze(-1)).squeeze(-1)
