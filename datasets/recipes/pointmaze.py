"""`pointmaze/{umaze,medium,large}`: a waypoint controller in gymnasium-robotics' PointMaze.

As in D4RL's pointmaze data, but with the environment's own time limit and goals. A goal that is reached gives a reward
of one and the next goal, so the return counts the goals of an episode. Gymnasium-robotics is an extra.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.environments import EnvironmentSpec, ReferenceScores, make_environment
from herdbook.core.types import Carry, Step
from herdbook.datasets.recipes.control import Controller, NoisyControl
from herdbook.datasets.recipes.recipe import OWN_SCORES, Behaviour, Recipe

FORCE = spaces.Box(-1.0, 1.0, (2,), np.float32)
WALL = 1
Cell = tuple[int, int]
"""Row and column of the maze map; row 0 is at the top, where y is largest."""


@dataclass(frozen=True, kw_only=True)
class PointMazeController(Controller):
    """Moves to the next cell on a shortest path to the goal, and within the goal's cell to the goal itself.

    The force is 10 · (waypoint − position) − velocity, as in D4RL's waypoint controller, with Gaussian noise.
    """

    maze_map: Sequence[Sequence[int | str]]
    """Rows of cells, `WALL` or free, as in gymnasium-robotics; a cell is one unit wide."""
    noise: float = 0.2
    """σ of the Gaussian around the controller's force, truncated to the action space."""
    _next: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_next", torch.as_tensor(next_cells(self.maze_map)))

    def distribution(self, step: Step, carry: Carry) -> tuple[NoisyControl, Carry]:
        return NoisyControl.within(FORCE, self.force(step.observations), self.noise, self.random_fraction), carry

    def force(self, observations: Tensor) -> Tensor:
        """The controller's force before clipping. [B, 2]

        observations: achieved goal, desired goal, position, velocity [B, 8], in the order of Gymnasium's flattening.
        """
        goal, position, velocity = observations[:, 2:4], observations[:, 4:6], observations[:, 6:8]
        here, there = self._cell(position), self._cell(goal)
        after = self._next.to(goal.device)[there[:, 0], there[:, 1], here[:, 0], here[:, 1]]  # [B, 2]
        arrived = (here == there).all(-1, keepdim=True)
        return 10 * (torch.where(arrived, goal, self._center(after)) - position) - velocity

    def _cell(self, positions: Tensor) -> Tensor:
        """Row and column [B, 2] of x, y [B, 2]; the origin is the map's centre."""
        rows, columns = len(self.maze_map), len(self.maze_map[0])
        cell = torch.stack([rows / 2 - positions[:, 1], columns / 2 + positions[:, 0]], dim=-1).floor().long()
        return torch.minimum(cell.clamp_min(0), cell.new_tensor([rows - 1, columns - 1]))

    def _center(self, cells: Tensor) -> Tensor:
        """x, y [B, 2] of the centres of cells, row and column [B, 2]."""
        rows, columns = len(self.maze_map), len(self.maze_map[0])
        return torch.stack([cells[:, 1] + 0.5 - columns / 2, rows / 2 - cells[:, 0] - 0.5], dim=-1)


def next_cells(maze_map: Sequence[Sequence[int | str]]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The next cell on a shortest path, for each goal and each cell: int64 `[rows, columns, rows, columns, 2]`.

    Found by breadth-first search from every goal. The next cell of a cell without a path is the cell itself.
    """
    rows, columns = len(maze_map), len(maze_map[0])
    free = {(i, j) for i in range(rows) for j in range(columns) if maze_map[i][j] != WALL}
    table = np.empty((rows, columns, rows, columns, 2), dtype=np.int64)
    table[...] = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    for goal in sorted(free):
        seen, queue = {goal}, deque([goal])
        while queue:
            i, j = queue.popleft()
            for neighbour in ((i, j + 1), (i, j - 1), (i + 1, j), (i - 1, j)):
                if neighbour in free - seen:
                    seen.add(neighbour)
                    queue.append(neighbour)
                    table[(*goal, *neighbour)] = i, j
    return table


def behaviours(environment: EnvironmentSpec, episodes: int) -> Callable[[], Sequence[Behaviour]]:
    """Four controllers with 0 to 75 % random actions, in equal shares of `episodes`."""

    def make() -> Sequence[Behaviour]:
        env = make_environment(environment)
        maze_map = env.unwrapped.maze.maze_map  # type: ignore[attr-defined]  # a PointMaze has one
        env.close()
        return [
            Behaviour(PointMazeController(maze_map=maze_map, random_fraction=f), episodes // 4, {"random_fraction": f})
            for f in (0.0, 0.25, 0.5, 0.75)
        ]

    return make


def _recipe(size: str, environment_id: str, limit: int, episodes: int, minimum: float, maximum: float) -> Recipe:
    environment = EnvironmentSpec(id=environment_id, kwargs={"continuing_task": True, "reset_target": True})
    content = f"waypoint controller, 0 to 75 % random actions, {episodes} episodes of {limit} steps"
    return Recipe(
        id=f"herdbook/pointmaze/{size}-v0",
        description=f"{environment_id}: {content}",
        environment=environment,
        behaviours=behaviours(environment, episodes),
        reference_scores=ReferenceScores(minimum, maximum, OWN_SCORES),
        extra="robotics",
    )


UMAZE = _recipe("umaze", "PointMaze_UMaze-v3", 300, 240, 0.2, 4.1)
MEDIUM = _recipe("medium", "PointMaze_Medium-v3", 600, 120, 0.1, 4.6)
LARGE = _recipe("large", "PointMaze_Large-v3", 800, 100, 0.1, 4.0)
