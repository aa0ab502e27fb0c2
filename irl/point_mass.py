"""A point mass and a barrier: the task in which a learned reward is transferred to other dynamics.

    p′ = p + 0.05 a, stopped by the barrier and by the edge of the arena [−1, 1]²            (1)
    r  = −‖p − goal‖ − 0.001 ‖a‖²                                                            (2)

The start is at the bottom, the goal at the top, and a barrier between them reaches from one side of the arena almost
to the other. A reward is learned with the barrier on one side and used with the barrier on the other, where the policy
that it was learned from no longer works. Observation (the position alone), horizon (100 steps) and reward are as in the
shifted point maze of Fu, Luo & Levine 2018 (arXiv:1710.11248), but this is not their MuJoCo body: the action is a
velocity, so that the next position is a deterministic function of the position and the action. Returns are not
comparable with the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
SPEED = 0.05
EFFORT = 0.001  # weight of the squared action, eq. 2
CLEARANCE = 0.01  # distance from the barrier at which the mass is stopped
HORIZON = 100


@dataclass(frozen=True, kw_only=True)
class PointMass:
    """The task for any number of masses at once, as pure functions. The barrier lies on y = 0.

    barrier: The side from which the barrier starts; the gap is on the other side.
    length: Length of the barrier, of the arena's width of 2.

    Raises ValueError for values out of range.
    """

    barrier: Literal["left", "right"] = "left"
    length: float = 1.4

    def __post_init__(self) -> None:
        if self.barrier not in ("left", "right"):
            raise ValueError(f"barrier: expected left or right, got {self.barrier!r}")
        if not 0 < self.length < 2:
            raise ValueError(f"length: expected a number in (0, 2), the arena's width, got {self.length}")

    @property
    def goal(self) -> tuple[float, float]:
        """x and y of the goal."""
        return 0.0, 0.8

    @property
    def speed(self) -> float:
        """Length of a step along each axis at full speed, eq. 1."""
        return SPEED

    @property
    def end(self) -> float:
        """x of the barrier's free end."""
        return self.length - 1 if self.barrier == "left" else 1 - self.length

    def starts(self, count: int, generator: np.random.Generator) -> Floats:
        """Uniform in [−0.25, 0.25] × [−0.9, −0.7]. `[count, 2]` float32"""
        return generator.uniform((-0.25, -0.9), (0.25, -0.7), (count, 2)).astype(np.float32)

    def step(self, positions: Floats, actions: Floats) -> tuple[Floats, Floats]:
        """Eqs. 1 and 2: the next positions `[B, 2]`, and the rewards `[B]`, of the positions before the step.

        positions: `[B, 2]`, x and y. actions: `[B, 2]`, clipped to [−1, 1]. A mass that meets the barrier is stopped in
        y and goes on along it in x.
        """
        actions = np.clip(actions, -1, 1)
        distances = np.linalg.norm(positions - np.array(self.goal, np.float32), axis=-1)
        rewards = -distances - EFFORT * np.square(actions).sum(-1)
        target = np.clip(positions + SPEED * actions, -1, 1)  # [B, 2]
        (x, y), (next_x, next_y) = positions.T, target.T
        below = y < 0
        crosses = below != (next_y < 0)
        share = y / np.where(crosses, y - next_y, 1)  # of the step that lies before the barrier
        meets = x + share * (next_x - x)
        covered = meets <= self.end if self.barrier == "left" else meets >= self.end
        stopped = np.where(below, -CLEARANCE, CLEARANCE).astype(target.dtype)
        return np.stack([next_x, np.where(crosses & covered, stopped, next_y)], axis=-1), rewards


class PointMassEnv(gymnasium.Env[Floats, Floats]):
    """`PointMass` with one mass: observation x, y (Box [2]), action in [−1, 1]², no termination.

    Args:
        settings: Fields of `PointMass`: `barrier` and `length`.
    """

    def __init__(self, **settings: Any) -> None:
        self.task = PointMass(**settings)
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self._positions: Floats = np.zeros((1, 2), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        super().reset(seed=seed)
        self._positions = self.task.starts(1, self.np_random)
        return self._positions[0], {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        self._positions, rewards = self.task.step(self._positions, np.asarray(action, np.float32)[None])
        return self._positions[0], float(rewards[0]), False, False, {}
