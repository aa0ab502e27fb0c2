"""A finite MDP as a Gymnasium environment, for methods that learn by acting."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from herdbook.tabular.mdp import MDP


class MDPEnv(gymnasium.Env[np.int64, np.int64]):
    """Observations and actions are the MDP's states and actions; there is no time limit.

    It exposes its model as toy-text environments do (`P`, `initial_state_distrib`).
    """

    def __init__(self, mdp: MDP) -> None:
        self.mdp = mdp
        self.observation_space = spaces.Discrete(mdp.num_states)
        self.action_space = spaces.Discrete(mdp.num_actions)
        self.initial_state_distrib = mdp.initial
        self._state = 0

    @property
    def P(self) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:
        """`{state: {action: [(probability, next state, reward, terminated)]}}`."""
        m = self.mdp
        return {
            s: {
                a: [
                    (float(m.transitions[s, a, t]), t, float(m.rewards[s, a, t]), bool(m.terminal[t]))
                    for t in np.flatnonzero(m.transitions[s, a]).tolist()
                ]
                for a in range(m.num_actions)
            }
            for s in range(m.num_states)
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = int(self.np_random.choice(self.mdp.num_states, p=self.mdp.initial))
        return np.int64(self._state), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        before, m = self._state, self.mdp
        self._state = int(self.np_random.choice(m.num_states, p=m.transitions[before, action]))
        reward = float(m.rewards[before, action, self._state])
        return np.int64(self._state), reward, bool(m.terminal[self._state]), False, {}
