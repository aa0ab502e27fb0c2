"""`JointActor`: a joint policy for people. NumPy in and out, one environment, a dict by agent, the carry kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from herdbook.core.joint.types import JointSpec
from herdbook.core.spaces import flatten, zeros
from herdbook.core.trees import mapped, write
from herdbook.core.types import Array, Policy, Step, Tree, to_numpy


class JointActor:
    """Acts for every agent of one environment: `actions = actor.act(observations)`; `reset()` where an episode begins.

    Args:
        policy: Raw observations by kind in, raw actions by kind out.
        spec: The task that it was trained on.
        device: Where its tensors live.
        generator: For a policy that samples.
    """

    def __init__(
        self,
        policy: Policy,
        spec: JointSpec,
        *,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
    ) -> None:
        self.policy, self.spec, self.device, self.generator = policy, spec, torch.device(device), generator
        self._seen = {kind.name: zeros(kind.observation_space, len(kind.agents)) for kind in spec.kinds}
        self.reset()

    def reset(self) -> None:
        """Forget the episode so far. It matters to policies with a memory only."""
        self._carry = self.policy.initial(1)
        self._first = True
        self._previous = {
            kind.name: zeros(kind.action_space, len(kind.agents)) + getattr(kind.action_space, "start", 0)
            for kind in self.spec.kinds
        }

    def act(
        self,
        observations: Mapping[str, Tree],
        *,
        action_masks: Mapping[str, Array] | None = None,
        rewards: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Actions of the agents that `observations` names, each an int or an array in the agent's own space.

        An observation is as the environment gives it, or PettingZoo's dict of `observation` and `action_mask`.
        `rewards` are the last step's, for policies that read them.

        Raises KeyError for an agent that was not there in training.
        """
        observations = dict(observations)
        masks = dict(action_masks or {})
        for agent, observation in observations.items():
            if self.spec.masked and isinstance(observation, Mapping) and "action_mask" in observation:
                masks[agent], observations[agent] = observation["action_mask"], observation["observation"]
        kinds = {kind.name: kind for kind in self.spec.kinds}
        legal = {
            name: np.ones((len(kind.agents), int(kind.action_space.n)), dtype=np.bool_)
            for name, kind in kinds.items()
            if isinstance(kind.action_space, spaces.Discrete)
        }
        alive = np.zeros(len(self.spec.agents), dtype=np.bool_)
        for agent, observation in observations.items():
            alive[self.spec.index[agent]] = True
            kind = next(kind for kind in self.spec.kinds if agent in kind.agents)
            row = kind.agents.index(agent)
            write(self._seen[kind.name], row, flatten(self.spec.observation_spaces[agent], observation))
            if agent in masks and np.any(masks[agent]):
                legal[kind.name][row] = masks[agent]
        given = np.array([(rewards or {}).get(agent, 0.0) for agent in self.spec.agents], dtype=np.float32)
        first = torch.full((1,), self._first, device=self.device)
        step = Step(
            observations=self._batch(self._seen),
            previous_actions=self._batch(self._previous),
            previous_rewards=self._batch(given),
            first=first,
            reset=first,
            action_mask=self._batch(legal) if self.spec.masked else None,
            alive=self._batch(alive),
        )
        chosen, self._carry = self.policy(step, self._carry, self.generator)
        self._first, actions, own = False, to_numpy(chosen), {}
        for kind in self.spec.kinds:
            for row, agent in enumerate(kind.agents):
                if agent in observations:  # who does not act keeps its last action
                    self._previous[kind.name][row] = actions[kind.name][0, row]
                    own[agent] = _own(self.spec.action_spaces[agent], actions[kind.name][0, row])
        return own

    def _batch(self, tree: Tree) -> Tree:
        """A leading axis of one environment; copies, for the arrays are written again."""
        return mapped(lambda leaf: torch.from_numpy(leaf.copy()).to(self.device)[None], tree)


def _own(space: spaces.Space[Any], action: Array) -> Any:
    """One action in an agent's own shape and type."""
    if isinstance(space, spaces.Discrete):
        return int(action)
    return action.reshape(space.shape).astype(space.dtype)
