"""`Actor`: a policy for people. NumPy in and out, one environment, the carry kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from herdbook.core.spaces import flatten
from herdbook.core.types import Array, Policy, Spec, Step, Tree, to_numpy, tree_map


class Actor:
    """Acts in one environment: `action = actor.act(observation)`; call `reset()` where an episode begins.

    Args:
        policy: Raw observations in, raw actions out.
        spec: The spaces that it was trained on.
        device: Where its tensors live.
        generator: For a policy that samples.
    """

    def __init__(
        self,
        policy: Policy,
        spec: Spec,
        *,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
    ) -> None:
        self.policy, self.spec, self.device, self.generator = policy, spec, torch.device(device), generator
        self.reset()

    def reset(self) -> None:
        """Forget the episode so far. It matters to policies with a memory only."""
        self._carry = self.policy.initial(1)
        self._first = True
        action = torch.as_tensor(np.asarray(self.spec.action_space.sample()), device=self.device)
        self._previous = torch.zeros_like(action)[None]

    def act(self, observation: Tree, *, reward: float = 0.0) -> Array:
        """The action for one observation as the environment gives it (before any flattening).

        `reward` is the last step's, for policies that read it. Returns an array `[A]`, or an int64 scalar for
        discrete actions.
        """
        space = self.spec.raw_observation_space or self.spec.observation_space
        flat = flatten(space, observation, self.spec.observation_keys)
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
        chosen: Any = to_numpy(actions)[0]
        return np.asarray(chosen)
