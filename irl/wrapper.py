"""A Gymnasium wrapper that replaces an environment's reward by a learned one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from herdbook.core.spaces import flat_action_space, flat_space, flatten
from herdbook.core.trees import mapped
from herdbook.core.types import Array, Spec, Steps, Tree
from herdbook.datasets.rewards import PlayedRewards
from herdbook.irl.rewards import LearnedReward, load_reward

ENVIRONMENT_REWARD = "environment_reward"
"""The key of `info` that holds the environment's reward of the step."""


class RewardWrapper(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Pays a learned reward. `info["environment_reward"]` holds the environment's own.

    Args:
        env: An environment with the spaces of the reward.
        reward: The learned reward, or the directory of a saved one, with which `env.spec` can be stored as JSON.
        discount: γ of the learning algorithm, which shaped rewards read; by default that of the reward. The potential
            of a terminal state is 0; a truncation changes nothing.
        shaped: Keep the shaping of a shaped reward, eq. 1 of `irl.rewards`.

    Raises RewardError for other spaces and for files that are no reward, ValueError as `check_reward_discount`.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        reward: LearnedReward | str | Path,
        discount: float | None = None,
        shaped: bool = False,
    ) -> None:
        given = reward if isinstance(reward, LearnedReward) else str(reward)
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, reward=given, discount=discount, shaped=shaped)
        super().__init__(env)
        learned = load_reward(given) if isinstance(given, str) else given
        self.reward = learned if shaped else learned.unshaped()
        self.discount = learned.discount if discount is None else discount
        self._keys = learned.spec.observation_keys
        self._before: Tree = None
        self._pays = PlayedRewards(self.reward, self.discount, next(iter(learned.members[0].values())).device)
        spec = Spec(flat_space(env.observation_space, self._keys), flat_action_space(env.action_space))
        learned.check_spaces(spec, "the environment" if env.spec is None else env.spec.id)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._before = self._row(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, self._before = self._before, self._row(observation)
        step = Steps(
            observations=before,
            actions=self._action(action)[None, None],
            rewards=np.full((1, 1), float(reward)),
            terminated=np.full((1, 1), bool(terminated)),
            truncated=np.full((1, 1), bool(truncated)),
            next_observations=self._before,
        )
        learned = self._pays(step).rewards.item()
        return observation, learned, terminated, truncated, {**info, ENVIRONMENT_REWARD: float(reward)}

    def _row(self, observation: Any) -> Tree:
        """The observation as datasets hold it, leaves [1, 1, …]; a copy, since environments may reuse their arrays."""
        return mapped(
            lambda leaf: np.array(leaf)[None, None], flatten(self.env.observation_space, observation, self._keys)
        )

    def _action(self, action: Any) -> Array:
        """The action as datasets hold it: within its space, flat if it is of a Box."""
        if isinstance(self.env.action_space, spaces.Discrete):
            return np.asarray(action, np.int64)
        assert isinstance(self.env.action_space, spaces.Box)
        inside = np.clip(action, self.env.action_space.low, self.env.action_space.high)
        return np.asarray(inside, np.float32).reshape(-1)
