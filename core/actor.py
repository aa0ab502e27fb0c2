"""`Actor`: a policy for interactive use in one environment. NumPy in and out; it keeps the carry."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces

from herdbook.core.spaces import BadValues, checked_row, executed, raw_actions
from herdbook.core.types import Array, Policy, Spec, Step, Tree, in_spaces, to_numpy, tree_map


class Actor:
    """Acts in one environment: `action = actor.act(observation)`. Call `reset()` at the start of every episode.

    Args:
        policy: Maps raw observations to raw actions.
        spec: The spaces that the policy was trained on.
        device: The device of the policy's tensors.
        generator: Source of randomness of a stochastic policy.
    """

    def __init__(
        self,
        policy: Policy,
        spec: Spec,
        *,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
    ) -> None:
        self.policy = in_spaces(policy, spec.observation_space, spec.action_space)
        self.spec, self.device, self.generator = spec, torch.device(device), generator
        self.reset()

    def reset(self) -> None:
        """Reset the policy's carry and its previous action."""
        self._carry = self.policy.initial(1)
        self._first = True
        action = torch.as_tensor(np.asarray(self.spec.action_space.sample()), device=self.device)
        self._previous = torch.zeros_like(action)[None]

    def act(self, observation: Tree, *, reward: float = 0.0) -> Array:
        """The action for one raw observation of the environment: an array `[A]`, or an int64 scalar if discrete.

        If the environment's Box is not of float32, the action has its shape and type.

        reward: The reward of the previous step, for policies that read it.

        Raises ValueError for an observation that is not in the space the policy was trained on.
        """
        space = self.spec.raw_observation_space or self.spec.observation_space
        try:
            flat = checked_row(space, self.spec.observation_space, observation, self.spec.observation_keys)
        except BadValues as error:
            raise ValueError(f"act: expected an observation{error.part} {error.expected}, got {error.got}") from error
        first = torch.full((1,), self._first, device=self.device)
        step = Step(
            observations=tree_map(lambda leaf: torch.as_tensor(np.asarray(leaf), device=self.device)[None], flat),
            previous_actions=self._previous,
            previous_rewards=torch.full((1,), reward, dtype=torch.float32, device=self.device),
            first=first,
            reset=first,
        )
        actions, self._carry = self.policy(step, self._carry, self.generator)
        self._previous, self._first = actions, False
        action, own = np.asarray(to_numpy(actions)[0]), self.spec.raw_action_space
        if not isinstance(own, spaces.Box):
            return action
        self._previous = torch.from_numpy(executed(own, action)).to(self.device)[None]
        return raw_actions(own, action)
