"""`JointActor`: a joint policy for interactive use, with NumPy values by agent, one environment and a kept carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from herdbook.core.joint.boundary import legal_actions
from herdbook.core.joint.types import JointSpec, all_legal
from herdbook.core.spaces import BadValues, checked_row, raw_actions, zeros
from herdbook.core.trees import mapped, write
from herdbook.core.types import Array, Policy, Step, Tree, to_numpy


class JointActor:
    """Acts for every agent of one environment: `actions = actor.act(observations)`; `reset()` where an episode begins.

    Args:
        policy: Raw observations by kind in, raw actions by kind out.
        spec: Specification of the task the policy was trained on.
        device: Device of the policy.
        generator: Source of randomness for a policy that samples.
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
        """Begin a new episode: forget the carry and the previous actions."""
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
        """Actions of the agents in `observations`, each an int or an array in the agent's own space.

        An observation is as the environment gives it, or PettingZoo's dict of `observation` and `action_mask`.
        `rewards` are those of the last step, for policies that read them. Agents may be named by integers, as in the
        environment.

        Raises KeyError if an agent was not part of the training task, ValueError for an observation outside its space.
        """
        names = {str(agent): agent for agent in observations}
        observations, masks, paid = (
            {str(agent): value for agent, value in (by_agent or {}).items()}
            for by_agent in (observations, action_masks, rewards)
        )
        for agent, observation in observations.items():
            if self.spec.masked and isinstance(observation, Mapping) and "action_mask" in observation:
                masks[agent] = observation["action_mask"]
                observations[agent] = _beside_mask(self.spec.observation_spaces[agent], observation)
        legal, alive = all_legal(self.spec), np.zeros(len(self.spec.agents), dtype=np.bool_)
        for agent, observation in observations.items():
            alive[self.spec.index[agent]] = True
            kind = next(kind for kind in self.spec.kinds if agent in kind.agents)
            row = kind.agents.index(agent)
            try:
                seen = checked_row(self.spec.observation_spaces[agent], kind.observation_space, observation)
            except BadValues as error:
                told = f"act: expected an observation of {agent}{error.part} {error.expected}, got {error.got}"
                raise ValueError(told) from error
            write(self._seen[kind.name], row, seen)
            if agent in masks and np.any(masks[agent]):
                legal[kind.name][row] = legal_actions(agent, masks[agent], legal[kind.name].shape[-1])
        given = np.array([paid.get(agent, 0.0) for agent in self.spec.agents], dtype=np.float32)
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
                if agent in observations:  # an agent that does not act keeps its last action
                    action = _own(self.spec.action_spaces[agent], actions[kind.name][0, row])
                    self._previous[kind.name][row] = np.reshape(action, self._previous[kind.name][row].shape)
                    own[names[agent]] = action
        return own

    def _batch(self, tree: Tree) -> Tree:
        """Tensors with a leading axis of one environment; copies, because the arrays are written again."""
        return mapped(lambda leaf: torch.from_numpy(leaf.copy()).to(self.device)[None], tree)


def _beside_mask(space: spaces.Space[Any], observation: Mapping[str, Any]) -> Tree:
    """The observation without its mask; see `boundary.without_mask`."""
    rest = {name: part for name, part in observation.items() if name != "action_mask"}
    if isinstance(space, spaces.Dict) and space.spaces.keys() <= rest.keys():
        return rest
    return rest["observation"] if "observation" in rest else next(iter(rest.values()))


def _own(space: spaces.Space[Any], action: Array) -> Any:
    if isinstance(space, spaces.Discrete):
        return int(action)
    assert isinstance(space, spaces.Box)
    return raw_actions(space, action)
