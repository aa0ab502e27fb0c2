"""Finite MDPs, gridworlds and mazes as Gymnasium environments.

Importing this module registers `herdbook/GridWorld-v0` and `herdbook/Maze-v0`; the herdbook command and
`herdbook.train` import it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from herdbook.core.environments import EnvironmentSource, make_environment
from herdbook.tabular.gridworld import GOAL, MOVES, PIT, GridWorld, random_maze
from herdbook.tabular.mdp import MDP

ROOM = "S....\n.....\n..#..\n.....\n....G"


class MDPEnv(gymnasium.Env[np.int64, np.int64]):
    """An MDP as an environment whose observations and actions are the MDP's states and actions, without time limit.

    Like toy-text environments, it exposes its model as `P` and `initial_state_distrib`.
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
                    (float(m.transitions[s, a, t]), t, float(m.rewards[s, a, t]), bool(m.ends[t]))
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
        return np.int64(self._state), reward, bool(m.ends[self._state]), False, {}


class GridWorldEnv(gymnasium.Env[Any, np.int64]):
    """A gridworld with the actions up, right, down and left. The attribute `grid` is its `GridWorld`.

    Args:
        text: The layout.
        observation: `state`, the number of the state (Discrete), or `position`, row and column in [0, 1] (Box [2]).
        render_mode: `ansi` (text with `@` for the agent) or `rgb_array`.
        settings: Other fields of `GridWorld`: slip and rewards.

    Raises ValueError as `GridWorld` does, and for an unknown observation or render mode.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}  # noqa: RUF012  # a plain dict, as Gymnasium declares it

    def __init__(
        self,
        text: str = ROOM,
        *,
        observation: Literal["state", "position"] = "state",
        render_mode: str | None = None,
        **settings: float,
    ) -> None:
        if observation not in ("state", "position"):
            raise ValueError(f"observation: expected state or position, got {observation!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode: expected ansi or rgb_array, got {render_mode!r}")
        self.grid = GridWorld(text=text, **settings)
        self.render_mode, self._cells, self._state = render_mode, self.grid.cells, 0
        self._successors, self._starts = self.grid.successors(), np.flatnonzero(self.grid.starts)
        self._rewards, self._ends = self.grid.entered, self.grid.ends
        self.action_space = spaces.Discrete(len(MOVES))
        self.observation_space = spaces.Discrete(len(self._cells))
        self._positions: NDArray[np.float32] | None = None
        if observation == "position":
            scale = np.maximum(np.array(self.grid.shape) - 1, 1)
            self._positions = (np.array(self._cells) / scale).astype(np.float32)
            self.observation_space = spaces.Box(0, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = int(self.np_random.choice(self._starts))
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        move = int(action)
        if not 0 <= move < len(MOVES):
            raise ValueError(f"expected an action in 0 to {len(MOVES) - 1}, got {action}")
        if self.grid.slip and self.np_random.random() < self.grid.slip:
            move = (move + int(self.np_random.choice((1, -1)))) % len(MOVES)
        self._state = int(self._successors[self._state, move])
        return self._observation(), float(self._rewards[self._state]), bool(self._ends[self._state]), False, {}

    def _observation(self) -> Any:
        return np.int64(self._state) if self._positions is None else self._positions[self._state].copy()

    @property
    def shortest_path(self) -> float:
        """Number of steps from the nearest start to a goal, without slips; ∞ if there is no path."""
        return float(self.grid.distances()[self._starts].min())

    def render(self) -> Any:
        row, column = self._cells[self._state]
        if self.render_mode == "ansi":
            rows = [list(line) for line in self.grid.rows]
            rows[row][column] = "@"
            return "\n".join("".join(line) for line in rows)
        if self.render_mode == "rgb_array":
            return self._image(row, column)
        raise ValueError("expected a render_mode of ansi or rgb_array, given when the environment is made; got None")

    def _image(self, row: int, column: int, size: int = 16) -> NDArray[np.uint8]:
        """Cells of `size` pixels: walls dark, goals green, pits red, the agent blue. Shape `[height, width, 3]`."""
        colours = {"#": (60, 60, 60), GOAL: (90, 190, 90), PIT: (200, 80, 80)}
        cells = [[colours.get(cell, (240, 240, 240)) for cell in line] for line in self.grid.rows]
        cells[row][column] = (70, 110, 220)
        image: NDArray[np.uint8] = np.array(cells, np.uint8).repeat(size, axis=0).repeat(size, axis=1)
        return image


class MazeEnv(GridWorldEnv):
    """A random perfect maze (`random_maze`), which depends on `maze_seed` and not on the reset seed."""

    def __init__(self, rows: int = 5, columns: int = 5, maze_seed: int = 0, **options: Any) -> None:
        super().__init__(random_maze(rows, columns, np.random.default_rng(maze_seed)), **options)


def model_of(source: EnvironmentSource, *, discount: float) -> MDP:
    """The MDP of an environment with a known model: an `MDPEnv`, a gridworld, or one that `MDP.from_gymnasium` reads.

    Time limits and other wrappers are not part of it. Raises EnvironmentUnavailable where the environment cannot be
    made, and ValueError if its model is not known or its observations are not the states.
    """
    env = make_environment(source)
    try:
        inner = env.unwrapped
        if not isinstance(env.observation_space, spaces.Discrete):
            raise ValueError(f"{inner}: expected states as Discrete observations, got {env.observation_space}")
        if isinstance(inner, GridWorldEnv):
            return inner.grid.mdp(discount=discount)
        if isinstance(inner, MDPEnv):
            return replace(inner.mdp, discount=discount)
        return MDP.from_gymnasium(env, discount=discount)
    finally:
        env.close()


for _name, _class in {"GridWorld": GridWorldEnv, "Maze": MazeEnv}.items():
    if f"herdbook/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(f"herdbook/{_name}-v0", entry_point=f"{__name__}:{_class.__name__}", max_episode_steps=500)
