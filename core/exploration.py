"""Exploration policies and training schedules."""

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
    """Uniform distribution over actions [B, size] in [−1, 1], one action per observation."""
    leaf: Tensor = tree_leaves(observations)[0]
    ones = torch.ones(len(leaf), size, device=leaf.device)
    return Uniform(-ones, ones)


def gaussian_noise(actions: Tensor, sigma: float) -> Normal:
    """N(actions, σ²) with samples clipped to [−1, 1]. actions: [*B, A]."""
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
    """The policy of a deterministic actor: noise-free if `deterministic`, uniform in the warm-up, else with noise.

    act: Maps observations to actions [B, A] in [−1, 1].
    """
    if deterministic:
        return FeedForwardPolicy(scaling, lambda o: Deterministic(act(o)))
    if step is not None and step < warmup_steps:
        return FeedForwardPolicy(scaling, lambda o: uniform_box(o, scaling.action_size), deterministic=False)
    return FeedForwardPolicy(scaling, lambda o: gaussian_noise(act(o), sigma), deterministic=False)


def linear_schedule(start: float, end: float, steps: int, step: float | None) -> float:
    """Linear interpolation from `start` to `end` over `steps`; `end` afterwards, and if `step` is None."""
    return end if step is None else start + (end - start) * min(step / steps, 1.0)


def updates_after(steps: int, warmup_steps: int, updates_per_step: float) -> int:
    """Number of updates due in total after `steps` environment steps, with none due in the warm-up."""
    rate = _simplest(updates_per_step)
    return max(steps - warmup_steps, 0) * rate.numerator // rate.denominator


def steps_between_updates(updates_per_step: float, num_envs: int) -> int:
    """Number of steps of each environment between updates, e.g. 4 for 1/4 update per step and one environment."""
    rate = _simplest(updates_per_step)
    return max(rate.denominator // (rate.numerator * num_envs), 1)


@functools.lru_cache
def _simplest(number: float) -> Fraction:
    """The fraction meant by a float: 29/100 for 0.29, although the float is slightly smaller, and 1/3 for 1 / 3.

    It is the closest fraction with a denominator up to 10⁹ if that equals the float, else the printed decimal.
    """
    number = float(number)
    simple = Fraction(number).limit_denominator(10**9)
    return simple if float(simple) == number else Fraction(repr(number))


class UpdateSettings(Protocol):
    """Config fields that determine the update schedule of an off-policy algorithm."""

    @property
    def warmup_steps(self) -> int: ...
    @property
    def updates_per_step(self) -> float: ...
    @property
    def decay_steps(self) -> int | None: ...


def steps_before(settings: UpdateSettings, updates: int) -> float:
    """Number of environment steps after which `updates` updates have been made; the inverse of `updates_after`."""
    return settings.warmup_steps + updates / settings.updates_per_step


def decayed(settings: UpdateSettings, updates: int) -> float:
    """Factor of the learning rates after `updates` updates: linear to 0 over `decay_steps` steps; 1 without decay."""
    if settings.decay_steps is None:
        return 1.0
    return linear_schedule(1.0, 0.0, settings.decay_steps, steps_before(settings, updates))


class NoisyPolicy:
    """Adds noise to another policy, to collect data with broader coverage.

    Box actions get noise N(0, (σ · half their range)²) and are clipped; a discrete action is replaced by a uniform one
    with probability σ.

    noise: σ. Raises ValueError for an unbounded Box, for σ < 0, and for σ > 1 with discrete actions.
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
