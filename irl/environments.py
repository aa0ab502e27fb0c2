"""Environments for inverse RL, all of a fixed horizon, so that the length of an episode says nothing about its reward.

Importing this module registers `herdbook/PointMass-v0` and `herdbook/FixedHorizonCartPole-v0`. herdbook imports it
where it meets one of these names.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from numpy.typing import NDArray

from herdbook.irl.point_mass import HORIZON, PointMassEnv

__all__ = ["FixedHorizonCartPoleEnv", "PointMassEnv"]


class FixedHorizonCartPoleEnv(CartPoleEnv):
    """CartPole that goes on after the pole has fallen: 500 steps, whatever happens.

    The reward is 1 in each step after which cart and pole are within CartPole's bounds (|x| ≤ 2.4, |θ| ≤ 12°), else 0.
    The physics go on outside of them: the cart leaves the track, the pole swings through, and the angle wraps to
    [−π, π). So does seals' CartPole-v0, but there the bounds themselves count as outside.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        high = np.array([np.inf, np.inf, math.pi, np.inf], dtype=np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        super().step(action)  # type: ignore[no-untyped-call]
        self.steps_beyond_terminated = None  # CartPole warns of steps after its end; here there is none
        assert self.state is not None
        x, speed, angle, rate = self.state
        angle = (angle + math.pi) % (2 * math.pi) - math.pi
        self.state = np.array([x, speed, angle, rate])
        upright = abs(x) <= self.x_threshold and abs(angle) <= self.theta_threshold_radians
        return self.state.astype(np.float32), float(upright), False, False, {}


for _name, _class, _steps in (
    ("PointMass", PointMassEnv, HORIZON),
    ("FixedHorizonCartPole", FixedHorizonCartPoleEnv, 500),
):
    if f"herdbook/{_name}-v0" not in gymnasium.registry:
        entry = f"{_class.__module__}:{_class.__name__}"
        gymnasium.register(f"herdbook/{_name}-v0", entry_point=entry, max_episode_steps=_steps)
