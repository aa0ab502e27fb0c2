"""What algorithms share that learn from a rollout once: its units, its advantages, and passes over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from herdbook.core.networks import OnPolicyActor, OnPolicyValue
from herdbook.core.returns import generalised_advantage
from herdbook.core.types import Segments, Spec, Tree, batch_type, tree_map
from herdbook.core.units import RunningSettings, RunningUnits


@batch_type
@dataclass(frozen=True, slots=True)
class Experience:
    """Steps of a rollout in any order, in the networks' units: every field is `[N, …]`."""

    observations: Tree
    actions: Tensor
    advantages: Tensor
    returns: Tensor
    """What the value should have been: Â + V(s)."""
    log_probs: Tensor | None = None
    """log π_old(a|s)."""


class UnitSettings(RunningSettings, Protocol):
    """What `Units` reads of an algorithm's config."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def initial_std(self) -> float: ...


class Units:
    """The units of what a policy sees and earns, and networks in them.

    Those of observations follow each rollout after it was learned from, as it was played in the old ones; the scale of
    rewards takes a rollout's own into account.

    Raises ValueError where observations are to be normalised that are not a vector.
    """

    def __init__(self, spec: Spec, settings: UnitSettings, device: str | torch.device) -> None:
        self.space, self.settings, self.running = spec.observation_space, settings, RunningUnits(spec, settings, device)
        self.scaling, self.moments, self.reward_scale = (
            self.running.scaling,
            self.running.moments,
            self.running.reward_scale,
        )

    def make_actor(self) -> OnPolicyActor:
        """A new policy over the actions, in these units."""
        c, scaling = self.settings, self.scaling
        return OnPolicyActor(
            self.space, scaling.action_size, c.hidden_sizes, discrete=scaling.discrete, initial_std=c.initial_std
        )

    def make_value(self) -> OnPolicyValue:
        """A new state value."""
        return OnPolicyValue(self.space, self.settings.hidden_sizes)

    def __call__(self, rollout: Segments) -> Segments:
        """The rollout in the networks' units, rewards with what they add to the scale."""
        rewards = rollout.rewards
        if self.reward_scale is not None:
            assert rollout.timesteps is not None  # a rollout has them
            rewards = self.reward_scale(rewards, rollout.timesteps == 0)
        return replace(
            rollout,
            observations=self.scaling.observations(rollout.observations),
            actions=self.scaling.actions(rollout.actions),
            rewards=rewards,
            next_observations=self.scaling.observations(rollout.next_observations),
        )

    def follow(self, rollout: Segments) -> None:
        """Take the observations of a rollout, as the environment gave them, into account from now on."""
        self.running.see(rollout.observations)

    def state_dict(self) -> dict[str, Any]:
        return self.running.state_dict()

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if the `units` of an algorithm's state are others."""
        self.running.check(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.running.load_state_dict(state)


def advantages_of(
    rollout: Segments, value: Callable[[Tree], Tensor], discount: float, trace: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages, and the returns that they make of the values: [lanes, T] both."""
    values, next_values = (
        value(tree_map(lambda leaf: leaf.flatten(0, 1), observations)).view_as(rollout.rewards)
        for observations in (rollout.observations, rollout.next_observations)
    )
    advantages = generalised_advantage(
        rollout.rewards, rollout.terminated, rollout.truncated, values, next_values, discount, trace
    )
    return advantages, advantages + values


def steps_of(rollout: Segments, advantages: Tensor, returns: Tensor) -> Experience:
    """All steps of all lanes, one after the other."""
    steps: Experience = tree_map(
        lambda leaf: leaf.flatten(0, 1), Experience(rollout.observations, rollout.actions, advantages, returns)
    )
    return steps


def minibatches(steps: Experience, size: int, epochs: int, generator: torch.Generator) -> Iterator[Experience]:
    """Passes over all steps in a new order each, in parts of `size`, of which a pass's last may be smaller."""
    count = len(steps.advantages)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator, device=generator.device).to(steps.advantages.device)
        for first in range(0, count, size):
            part = order[first : first + size]
            yield tree_map(lambda leaf, part=part: leaf[part], steps)


def standardised(advantages: Tensor) -> Tensor:
    """Less their mean, over their standard deviation. [N] → [N]"""
    return (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
