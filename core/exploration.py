"""How agents explore, and schedules that last a part of the training."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Protocol

import torch
from gymnasium import Space, spaces
from torch import Tensor

from herdbook.core.distributions import Deterministic, Normal, Uniform
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.types import Carry, Distribution, Policy, Step, Tree, tree_leaves


def uniform_box(observations: Tree, size: int) -> Uniform:
    """Uniform actions [B, size] in [−1, 1], one for each observation."""
    leaf: Tensor = tree_leaves(observations)[0]
    ones = torch.ones(len(leaf), size, device=leaf.device)
    return Uniform(-ones, ones)


def gaussian_noise(actions: Tensor, sigma: float) -> Normal:
    """N(actions, σ²), whose samples are clipped to [−1, 1]. actions: [*B, A]."""
    return Normal(actions, torch.full_like(actions, sigma).log(), clip=True)


def exploring_actor(
    scaling: Scaling,
    act: Callable[[Tree], Tensor],
    sigma: float,
    warmup_steps: int,
    *,
    deterministic: bool,
    step: int | None,
) -> FeedForwardPolicy:
    """The policy of a deterministic actor: as it is, with noise, or uniform while `step` is in the warm-up.

    act: observations to actions [B, A] in [−1, 1].
    """
    if deterministic:
        return FeedForwardPolicy(scaling, lambda o: Deterministic(act(o)))
    if step is not None and step < warmup_steps:
        return FeedForwardPolicy(scaling, lambda o: uniform_box(o, scaling.action_size), deterministic=False)
    return FeedForwardPolicy(scaling, lambda o: gaussian_noise(act(o), sigma), deterministic=False)


def linear_schedule(start: float, end: float, steps: int, step: float | None) -> float:
    """From `start` to `end` over so many steps, and `end` ever after, or where no step is given."""
    return end if step is None else start + (end - start) * min(step / steps, 1.0)


def updates_after(steps: int, warmup_steps: int, updates_per_step: float) -> int:
    """How many updates should have been made after so many environment steps, of which the first are a warm-up."""
    rate = _simplest(updates_per_step)
    return max(steps - warmup_steps, 0) * rate.numerator // rate.denominator


def steps_between_updates(updates_per_step: float, num_envs: int) -> int:
    """How many steps each environment takes in a row: 4 for 1/4 and one environment, 1 where each step is due more."""
    rate = _simplest(updates_per_step)
    return max(rate.denominator // (rate.numerator * num_envs), 1)


@functools.lru_cache
def _simplest(number: float) -> Fraction:
    """What was meant by a float: 29/100 for 0.29, which is a little less, and 1/3 for 1 / 3.

    A fraction of a denominator up to 10⁹ whose float it is, and where there is none what is printed of it.
    """
    number = float(number)
    simple = Fraction(number).limit_denominator(10**9)
    return simple if float(simple) == number else Fraction(repr(number))


class UpdateSettings(Protocol):
    """What the schedules of an algorithm that learns from a replay are made of."""

    @property
    def warmup_steps(self) -> int: ...
    @property
    def updates_per_step(self) -> float: ...
    @property
    def decay_steps(self) -> int | None: ...


def steps_before(settings: UpdateSettings, updates: int) -> float:
    """The inverse of `updates_after`: environment steps at which so many updates have been made."""
    return settings.warmup_steps + updates / settings.updates_per_step


def decayed(settings: UpdateSettings, updates: int) -> float:
    """What is left of the rates after so many updates: all, or linearly to 0 over `decay_steps` environment steps."""
    if settings.decay_steps is None:
        return 1.0
    return linear_schedule(1.0, 0.0, settings.decay_steps, steps_before(settings, updates))


class NoisyPolicy:
    """Another policy with noise, for data of a wider range than its own.

    Box actions get N(0, (σ · half their range)²) and are clipped; a discrete one is uniform with probability σ.

    noise: σ.

    Raises ValueError for a Box without bounds, for a negative σ, and for one above 1 of discrete actions.
    """

    def __init__(self, policy: Policy, action_space: Space[Any], noise: float) -> None:
        most = 1.0 if isinstance(action_space, spaces.Discrete) else math.inf
        if not 0 <= noise <= most or math.isinf(noise):
            raise ValueError(f"expected noise in [0, {most:g}{']' if most == 1 else ')'}, got {noise}")
        self.policy, self.noise, self.uniform = policy, noise, RandomPolicy(action_space)

    def initial(self, num_envs: int) -> Carry:
        return self.policy.initial(num_envs)

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        actions, carry = self.policy(step, carry, generator)
        uniform = self.uniform.distribution(step, None)[0]
        if isinstance(uniform, Uniform):
            noise = torch.empty_like(actions).normal_(generator=generator) * (uniform.high - uniform.low) / 2
            return (actions + self.noise * noise).clamp(uniform.low, uniform.high), carry
        drawn = torch.rand(actions.shape, generator=generator, device=actions.device)
        return torch.where(drawn < self.noise, uniform.sample(generator), actions), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Distribution, Carry]:
        raise TypeError("a policy with noise has no density of its own")
