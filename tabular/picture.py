"""Pictures of values, policies and rewards over a gridworld."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from herdbook.tabular.gridworld import GOAL, MOVES, PIT, START, GridWorld
from herdbook.tabular.mdp import Floats


def draw(grid: GridWorld, values: ArrayLike, policy: ArrayLike | None = None, *, path: str | Path) -> None:
    """Draw values as colours and a policy as arrows, whose lengths are proportional to the probabilities.

    Args:
        grid: The gridworld.
        values: V(s), [S].
        policy: π(a | s), [S, 4].
        path: The file to write; its suffix determines the format (png, pdf, svg).

    Raises ValueError for arrays whose shapes do not fit the gridworld.
    """
    states = len(grid.cells)
    values, pi = _of_states(grid, "values", values), None if policy is None else np.asarray(policy, np.float64)
    if pi is not None and pi.shape != (states, len(MOVES)):
        raise ValueError(f"policy: expected [{states}, {len(MOVES)}], got shape {pi.shape}")
    rows, columns = grid.shape
    figure = Figure(figsize=(1 + 0.6 * columns, 0.5 + 0.6 * rows))
    axes = figure.add_subplot()
    _paint(grid, values, "value", figure, axes)
    for state, (row, column) in enumerate(grid.cells):
        if pi is None or grid.rows[row][column] in (GOAL, PIT):
            continue
        for (down, right), probability in zip(MOVES, pi[state], strict=True):
            if probability > 0.01:
                length = 0.4 * float(probability)
                axes.arrow(column, row, length * right, length * down, head_width=0.1, color="white")
    figure.savefig(path, bbox_inches="tight", dpi=120)


def draw_rewards(grid: GridWorld, rewards: Mapping[str, ArrayLike], *, path: str | Path) -> None:
    """Draw maps of rewards side by side, each with its own colours, because a reward is known only up to its scale.

    Args:
        grid: The gridworld.
        rewards: R(s), [S], by the title of its map, such as `{"true": …, "learned": …}`.
        path: The file to write; its suffix determines the format (png, pdf, svg).

    Raises ValueError for no rewards, and for arrays whose shapes do not fit the gridworld.
    """
    if not rewards:
        raise ValueError("rewards: expected at least one map, got none")
    maps = {name: _of_states(grid, name, values) for name, values in rewards.items()}
    rows, columns = grid.shape
    figure = Figure(figsize=(len(maps) * (1 + 0.6 * columns), 0.8 + 0.6 * rows))
    for number, (name, values) in enumerate(maps.items(), start=1):
        axes = figure.add_subplot(1, len(maps), number)
        _paint(grid, values, "reward", figure, axes)
        axes.set_title(name)
    figure.savefig(path, bbox_inches="tight", dpi=120)


def _of_states(grid: GridWorld, name: str, values: ArrayLike) -> Floats:
    """Values `[S]` as float64. Raises ValueError for another shape."""
    array, states = np.asarray(values, np.float64), len(grid.cells)
    if array.shape != (states,):
        raise ValueError(f"{name}: expected [{states}], one of each state, got shape {array.shape}")
    return array


def _paint(grid: GridWorld, values: Floats, label: str, figure: Figure, axes: Any) -> None:
    """Draw the cells with values [S] as colours, and the letters of the layout."""
    axes.set_facecolor("0.25")  # walls
    figure.colorbar(axes.imshow(grid.picture(values), cmap="viridis"), ax=axes, label=label)
    for row, column in grid.cells:
        if (kind := grid.rows[row][column]) in (START, GOAL, PIT):
            axes.text(column, row, kind, ha="center", va="center", color="white", weight="bold")
    axes.set_xticks([])
    axes.set_yticks([])
