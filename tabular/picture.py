"""Pictures of values and policies over a gridworld."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from herdbook.tabular.gridworld import GOAL, MOVES, PIT, START, GridWorld


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
    values, pi = np.asarray(values, np.float64), None if policy is None else np.asarray(policy, np.float64)
    if values.shape != (states,):
        raise ValueError(f"values: expected [{states}], one of each state, got shape {values.shape}")
    if pi is not None and pi.shape != (states, len(MOVES)):
        raise ValueError(f"policy: expected [{states}, {len(MOVES)}], got shape {pi.shape}")
    rows, columns = grid.shape
    figure = Figure(figsize=(1 + 0.6 * columns, 0.5 + 0.6 * rows))
    axes = figure.add_subplot()
    axes.set_facecolor("0.25")  # walls
    image = axes.imshow(grid.picture(values), cmap="viridis")
    figure.colorbar(image, ax=axes, label="value")
    for state, (row, column) in enumerate(grid.cells):
        kind = grid.rows[row][column]
        if kind in (START, GOAL, PIT):
            axes.text(column, row, kind, ha="center", va="center", color="white", weight="bold")
        if pi is None or kind in (GOAL, PIT):
            continue
        for (down, right), probability in zip(MOVES, pi[state], strict=True):
            if probability > 0.01:
                length = 0.4 * float(probability)
                axes.arrow(column, row, length * right, length * down, head_width=0.1, color="white")
    axes.set_xticks([])
    axes.set_yticks([])
    figure.savefig(path, bbox_inches="tight", dpi=120)
