"""Gridworlds and mazes from text, as MDPs.

    #######
    #S..#.#        # wall      S start (one of several is drawn uniformly; without any, a free cell is drawn)
    #.#...#        . free      G goal, ends the episode
    #..X.G#        X pit, ends the episode
    #######

Actions are up, right, down, left (0 to 3, as in CliffWalking-v1). After a move into a wall or off the grid, the agent
stays where it is. With probability `slip`, a move goes to the left or the right of its direction instead, with equal
probability (FrozenLake's ice has slip 2/3).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herdbook.tabular.mdp import MDP, Floats

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
WALL, FREE, START, GOAL, PIT = "#.SGX"


@dataclass(frozen=True, kw_only=True)
class GridWorld:
    """A gridworld. Its states are the cells that are not walls, numbered row by row.

    Raises ValueError, naming the row, for lines of unequal length and unknown characters; also for a layout without a
    cell to begin in, and for a slip outside [0, 1].
    """

    text: str
    step_reward: float = -1.0  # reward of every step
    goal_reward: float = 0.0  # added to step_reward for a step into a goal
    pit_reward: float = -100.0  # added to step_reward for a step into a pit
    slip: float = 0.0  # probability that a move goes to one of its two sides

    def __post_init__(self) -> None:
        rows = self.rows
        for number, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise ValueError(f"row {number}: expected {len(rows[0])} cells as in row 0, got {len(row)}: {row!r}")
            if unknown := sorted(set(row) - {WALL, FREE, START, GOAL, PIT}):
                raise ValueError(f"row {number}: expected cells of {WALL}{FREE}{START}{GOAL}{PIT}, got {unknown[0]!r}")
        if not any(cell in (START, FREE) for row in rows for cell in row):
            raise ValueError(f"expected a cell to begin in ({START}, else {FREE}), got none")
        if not 0 <= self.slip <= 1:
            raise ValueError(f"slip: expected a probability, got {self.slip}")

    @property
    def rows(self) -> tuple[str, ...]:
        """The lines of the text without surrounding whitespace."""
        return tuple(line.strip() for line in self.text.strip().splitlines())

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return len(self.rows), len(self.rows[0])

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Row and column of each state."""
        return [(r, c) for r, row in enumerate(self.rows) for c, cell in enumerate(row) if cell != WALL]

    def states(self, kind: str) -> NDArray[np.bool_]:
        """Mask of the states of one kind (`S`, `.`, `G` or `X`). `[S]` bool"""
        return np.array([self.rows[r][c] == kind for r, c in self.cells])

    @property
    def starts(self) -> NDArray[np.bool_]:
        """Mask of the states in which episodes begin. `[S]` bool"""
        marked = self.states(START)
        return marked if marked.any() else self.states(FREE)

    @property
    def ends(self) -> NDArray[np.bool_]:
        """Mask of the terminal states, goals and pits. `[S]` bool"""
        return self.states(GOAL) | self.states(PIT)

    @property
    def entered(self) -> Floats:
        """Reward of a step into each state. `[S]`"""
        return self.step_reward + self.goal_reward * self.states(GOAL) + self.pit_reward * self.states(PIT)

    def successors(self) -> NDArray[np.int64]:
        """The next state of each move without slip. `[S, 4]`"""
        number = {cell: state for state, cell in enumerate(self.cells)}
        return np.array(
            [[number.get((r + down, c + right), number[r, c]) for down, right in MOVES] for r, c in self.cells]
        )

    def mdp(self, *, discount: float) -> MDP:
        """The gridworld as an MDP, which takes 64 S² bytes. Goals and pits are terminal."""
        successors = self.successors()
        states = len(successors)
        moves = np.eye(states)[successors]  # [S, 4, S]
        sides = (np.roll(moves, 1, axis=1) + np.roll(moves, -1, axis=1)) / 2
        starts = self.starts
        return MDP(
            transitions=(1 - self.slip) * moves + self.slip * sides,
            rewards=np.broadcast_to(self.entered, (states, len(MOVES), states)),
            initial=starts / starts.sum(),
            discount=discount,
            terminal=self.ends,
        )

    def distances(self) -> Floats:
        """Length of the shortest path from each state to a goal that avoids pits, without slips; ∞ if none. `[S]`"""
        successors, goals, pits = self.successors(), self.states(GOAL), self.states(PIT)
        into: list[list[int]] = [[] for _ in successors]
        for state, moves in enumerate(successors):
            for following in moves.tolist():
                into[following].append(state)
        distances = np.where(goals, 0.0, np.inf)
        waiting = deque(np.flatnonzero(goals).tolist())
        while waiting:
            state = waiting.popleft()
            for before in into[state]:
                if distances[before] == np.inf and not pits[before]:
                    distances[before] = distances[state] + 1
                    waiting.append(before)
        return distances

    def picture(self, values: Floats) -> Floats:
        """Values of the states as an image with NaN at walls. [S] → [rows, columns]"""
        image = np.full(self.shape, np.nan)
        image[tuple(np.array(self.cells).T)] = values
        return image


def random_maze(rows: int, columns: int, generator: np.random.Generator) -> str:
    """The text of a perfect maze (one path between any two cells), made by a randomised depth-first search.

    `rows` and `columns` count cells without the walls between them, so that the text has 2 · rows + 1 lines. Start and
    goal are in opposite corners. Raises ValueError for fewer than two cells.
    """
    if rows < 1 or columns < 1 or rows * columns < 2:
        raise ValueError(f"expected at least two cells, got {rows} × {columns}")
    grid = np.full((2 * rows + 1, 2 * columns + 1), WALL)
    path = [(0, 0)]
    seen = {(0, 0)}
    while path:
        r, c = path[-1]
        grid[2 * r + 1, 2 * c + 1] = FREE
        near = [(r + down, c + right) for down, right in MOVES]
        unseen = [(i, j) for i, j in near if 0 <= i < rows and 0 <= j < columns and (i, j) not in seen]
        if not unseen:
            path.pop()
            continue
        i, j = unseen[int(generator.integers(len(unseen)))]
        grid[r + i + 1, c + j + 1] = FREE  # the wall between the two
        seen.add((i, j))
        path.append((i, j))
    grid[1, 1], grid[-2, -2] = START, GOAL
    return "\n".join("".join(row) for row in grid)
