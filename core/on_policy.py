"""Shared parts of on-policy algorithms: actor and critic, advantages, and minibatches of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from herdbook.core.learner import Adam, Learner, Setup, check_one_seed
from herdbook.core.networks import OnPolicyActor, OnPolicyValue
from herdbook.core.policy import FeedForwardPolicy
from herdbook.core.returns import generalised_advantage
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Policy, Segments, Spec, Tree, batch_type, tree_map
from herdbook.core.units import RunningSettings, RunningUnits


@batch_type
@dataclass(frozen=True, slots=True)
class Experience:
    """Steps of a rollout in any order, in the networks' units. Every field is `[N, …]`."""

    observations: Tree
    actions: Tensor
    advantages: Tensor
    returns: Tensor  # regression targets of the value, Â + V(s)
    log_probs: Tensor | None = None  # log π_old(a|s)


class ActorCriticSettings(RunningSettings, Protocol):
    """Config fields that `ActorCritic` reads."""

    @property
    def algorithm(self) -> str: ...
    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def initial_std(self) -> float: ...


class ActorCritic:
    """A policy and a state-value function with running normalisation; an algorithm adds its losses.

    Args:
        settings: The algorithm's config.
        spec: The spaces.
        optimisers: Optimisers of `actor` and of the value network (named by `value`), as `Learner` takes them.
        setup: The algorithm's further arguments.
        value: The name of the value network.

    Raises ValueError unless actions are discrete or in a bounded Box, for more than one seed, and if observations that
    are not vectors shall be normalised.
    """

    def __init__(
        self,
        settings: ActorCriticSettings,
        spec: Spec,
        optimisers: Mapping[str, Adam],
        setup: Setup,
        value: str = "critic",
    ) -> None:
        name = settings.algorithm or type(settings).__name__.removesuffix("Config")
        check_action_space(spec.action_space, "any", name)
        check_one_seed(name, setup, "it trains")
        self.units = RunningUnits(spec, settings, setup.get("device", "cpu"))
        space, sizes, scaling = spec.observation_space, settings.hidden_sizes, self.units.scaling
        networks: dict[str, Callable[[], nn.Module]] = {
            "actor": lambda: OnPolicyActor(
                space, scaling.action_size, sizes, discrete=scaling.discrete, initial_std=settings.initial_std
            ),
            value: lambda: OnPolicyValue(space, sizes),
        }
        self.learner = Learner(networks, optimisers, **setup)
        self.actor, self.value = self.learner.networks["actor"], self.learner.networks[value]

    def policy(self, seed_index: int, deterministic: bool) -> Policy:
        """The policy, which acts by the mode of its distribution if `deterministic`, else by a sample."""
        actor = self.learner.parameters_of("actor", seed_index)
        return FeedForwardPolicy(self.units.scaling, lambda o: self.actor(actor, o), deterministic=deterministic)

    def state_dict(self) -> dict[str, Any]:
        """The learner's state, with the entry `units`."""
        return {**self.learner.state_dict(), "units": self.units.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`. Raises ValueError, and changes nothing, if it does not fit."""
        self.units.check(state)
        self.learner.load_state_dict(state)
        self.units.load_state_dict(state["units"])


def advantages_of(
    rollout: Segments, value: Callable[[Tree], Tensor], discount: float, trace: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages, and returns as their sum with the values: [lanes, T] both. trace: λ."""
    values, next_values = (
        value(tree_map(lambda leaf: leaf.flatten(0, 1), observations)).view_as(rollout.rewards)
        for observations in (rollout.observations, rollout.next_observations)
    )
    advantages = generalised_advantage(
        rollout.rewards, rollout.terminated, rollout.truncated, values, next_values, discount, trace
    )
    return advantages, advantages + values


def steps_of(rollout: Segments, advantages: Tensor, returns: Tensor) -> Experience:
    """Flatten a rollout [lanes, T, …] to steps [lanes · T, …]."""
    lanes = Experience(rollout.observations, rollout.actions, advantages, returns)
    steps: Experience = tree_map(lambda leaf: leaf.flatten(0, 1), lanes)
    return steps


def minibatches(steps: Experience, size: int, epochs: int, generator: torch.Generator) -> Iterator[Experience]:
    """Minibatches of `size` steps, reshuffled in every epoch; the last one of an epoch may be smaller."""
    count = len(steps.advantages)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator, device=generator.device).to(steps.advantages.device)
        for first in range(0, count, size):
            part = order[first : first + size]
            yield tree_map(lambda leaf, part=part: leaf[part], steps)


def standardised(advantages: Tensor) -> Tensor:
    """Standardise to mean 0 and standard deviation 1. [N] → [N]."""
    return (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
