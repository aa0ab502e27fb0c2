"""Policies from networks: raw observations in, raw actions out.

Networks use standardised observations, and actions in [−1, 1] or indices from 0. `Scaling` converts the units. The
update applies it to its batch and the policy to its input, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.distributions import BOUND, Categorical, ClippedNormal, Deterministic, EpsilonGreedy
from herdbook.core.frames import Frames
from herdbook.core.types import Carry, Distribution, Spec, Step, Transitions, Tree

STD_OFFSET = 1e-3  # added to σ when observations are standardised (Fujimoto & Gu 2021)


class Scaling:
    """Converts between the units of the environment and those of the networks.

    `observation_space` is the networks' input space: that of the spec or, with `frame_stack` > 1, of stacks laid out by
    `Frames`. Only vector observations are standardised.

    Raises ValueError if actions are neither a bounded Box nor Discrete, if vector observations shall be standardised
    and the spec has no statistics, or if observations cannot be stacked.
    """

    def __init__(
        self, spec: Spec, *, standardise: bool = False, frame_stack: int = 1, device: str | torch.device = "cpu"
    ) -> None:
        self.frames = None if frame_stack == 1 else Frames(spec.observation_space, frame_stack)
        self.observation_space = spec.observation_space if self.frames is None else self.frames.space
        self.mean: Tensor | None = None
        self.center: Tensor | None = None
        self.rounding: Tensor | None = None
        if standardise and isinstance(spec.observation_space, spaces.Box) and len(spec.observation_space.shape) == 1:
            if spec.observation_mean is None or spec.observation_std is None:
                raise ValueError("expected observation_mean and _std in the Spec, to standardise by; got None")
            statistics = (spec.observation_mean, spec.observation_std)
            self.follow(*(torch.as_tensor(value, dtype=torch.float32, device=device) for value in statistics))
        space = spec.action_space
        if isinstance(space, spaces.Discrete):
            self.discrete, self.action_size, self.start = True, int(space.n), int(space.start)
        elif isinstance(space, spaces.Box) and bool(space.is_bounded()):
            self.discrete, self.action_size = False, int(space.low.size)
            low = torch.as_tensor(space.low.reshape(-1), dtype=torch.float32, device=device)
            high = torch.as_tensor(space.high.reshape(-1), dtype=torch.float32, device=device)
            if not bool((low == -1).all() and (high == 1).all()):
                self.low, self.high, self.center, self.half = low, high, (high + low) / 2, (high - low) / 2
                rounding = 2 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs()) / self.half
                if bool((rounding > 1 - BOUND).any()):
                    self.rounding = rounding
        else:
            raise ValueError(f"expected Discrete actions or a bounded Box, got {space}")

    def follow(self, mean: Tensor, std: Tensor) -> None:
        """Standardise by this mean and standard deviation from now on, [D] each."""
        self.mean, self.inverse_std = mean, 1 / (std + STD_OFFSET)

    def observations(self, raw: Tree) -> Tree:
        """(o − μ) / (σ + 1e-3) if standardised, else unchanged. [*B, …], or stacks [*B, k, …] → [*B, …]."""
        scaled = raw if self.mean is None else (raw - self.mean) * self.inverse_std
        return scaled if self.frames is None else self.frames(scaled)

    @property
    def frame_stack(self) -> int:
        """Number of observations in one network input."""
        return 1 if self.frames is None else self.frames.count

    def see(self, step: Step, stacks: Tree | None) -> tuple[Tree, Tree | None]:
        """The network input at a step, and the updated stacks; None without stacking."""
        if self.frames is None:
            return self.observations(step.observations), stacks
        stacks = self.frames.push(stacks, step.observations, step.reset)
        return self.observations(stacks), stacks

    def actions(self, raw: Tensor) -> Tensor:
        """Convert raw actions to [−1, 1], or to indices from 0.

        In a narrow Box far from 0, float32 is coarse. Actions within a rounding error of a bound, e.g. 0.0002 in
        [1000.1, 1000.3], are mapped to the bound.
        """
        if self.discrete:
            return raw.long() - self.start if self.start else raw.long()
        if self.center is None:
            return raw
        scaled = (raw - self.center) / self.half
        return scaled if self.rounding is None else torch.where(scaled.abs() > 1 - self.rounding, scaled.sign(), scaled)

    def raw_actions(self, actions: Tensor) -> Tensor:
        """The inverse of `actions`, clamped to the action space against rounding errors."""
        if self.discrete:
            return actions + self.start if self.start else actions
        return actions if self.center is None else (actions * self.half + self.center).clamp(self.low, self.high)

    def __call__(self, batch: Transitions) -> Transitions:
        """Convert a batch to the networks' units."""
        return replace(
            batch,
            observations=self.observations(batch.observations),
            actions=self.actions(batch.actions),
            next_observations=self.observations(batch.next_observations),
            next_actions=None if batch.next_actions is None else self.actions(batch.next_actions),
            between=None if batch.between is None else self.observations(batch.between),
        )


@dataclass(frozen=True, slots=True)
class ScaledDistribution:
    """The distribution over raw actions that a distribution over the networks' actions implies."""

    base: Any
    scaling: Scaling

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.scaling.raw_actions(self.base.sample(generator))

    def mode(self) -> Tensor:
        return self.scaling.raw_actions(self.base.mode())

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-density of raw actions [*B, A] → [*B]: the density is divided by the half width of each dimension.

        A probability mass (`ClippedNormal` at a bound) is not divided.
        """
        scaled = self.scaling.actions(actions)
        log_prob: Tensor = self.base.log_prob(scaled)
        if self.scaling.center is None:
            return log_prob
        width = self.scaling.half.log()
        if isinstance(self.base, ClippedNormal):
            width = torch.where(self.base.at_bound(scaled), 0.0, width)
        return log_prob - width.sum(-1)

    @property
    def probs(self) -> Tensor:
        """Probabilities of discrete actions, in the order of their indices. [*B, n]"""
        probs: Tensor = self.base.probs
        return probs


def greedy(distribution: Any) -> Any:
    """A point mass on the mode of a distribution."""
    if isinstance(distribution, (Categorical, EpsilonGreedy)):
        best = torch.nn.functional.one_hot(distribution.mode(), distribution.probs.shape[-1])
        return Categorical(best.float().log())
    return Deterministic(distribution.mode())


class FeedForwardPolicy:
    """A policy given by a function from scaled observations to a distribution over actions.

    Its carry holds the last frames `[N, k, …]` if the scaling stacks them, else None. `__call__` does not disable
    gradients.
    """

    def __init__(
        self, scaling: Scaling, distribution: Callable[[Tree], Distribution], *, deterministic: bool = True
    ) -> None:
        self.scaling = scaling
        self.function = distribution
        self.deterministic = deterministic

    @property
    def frame_stack(self) -> int:
        return self.scaling.frame_stack

    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        observations, carry = self.scaling.see(step, carry)
        distribution = self.function(observations)
        actions = distribution.mode() if self.deterministic else distribution.sample(generator)
        return self.scaling.raw_actions(actions), carry

    @torch.no_grad()
    def distribution(self, step: Step, carry: Carry) -> tuple[Distribution, Carry]:
        observations, carry = self.scaling.see(step, carry)
        distribution = self.function(observations)
        base = greedy(distribution) if self.deterministic else distribution
        return ScaledDistribution(base, self.scaling), carry
