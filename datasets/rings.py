"""Ring positions of an online replay's steps and observation rows, and the range of steps that can be sampled.

Counters live on the host and only grow; a position is a number modulo the ring's size. All lanes step together, so they
share the counter of steps. Rows are counted per lane, because every episode has one more row than steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from herdbook.core.types import Array, TimeLimit


class Written(NamedTuple):
    """The entries that T steps of every lane are written to. An entry is position · lanes + lane."""

    steps: slice | Array
    """Entries of the steps. `[T · lanes]`"""
    previous: slice | None
    """Entries of the step before; None for the first step ever."""
    step_rows: Array
    """Row entry of each step. `[T, lanes]`"""
    next_rows: Array
    """Row entry of each next observation. `[T, lanes]`"""


def positions_of(before: Array, ended: Array) -> tuple[Array, Array]:
    """Positions of T steps in their episodes, counted from 0, and a mask of first steps; both `[T, lanes]`.

    before: `[lanes]`, the position of the first of these steps; ended: `[T, lanes]`, a step is its episode's last.
    """
    if len(ended) == 1:
        return before[None], before[None] == 0
    numbers, began = np.arange(len(ended))[:, None], np.concatenate([before[None] == 0, ended[:-1]])
    positions: Array = numbers + before
    if began[1:].any():
        positions = numbers - np.maximum.accumulate(np.where(began, numbers, -before), 0)
    return positions, began


def position_after(positions: Array, ended: Array) -> Array:
    """Position of each lane's next step, `[lanes]`, after steps at `positions`; both arguments are `[T, lanes]`."""
    return np.where(ended[-1], 0, positions[-1] + 1)


def ring_sizes(capacity: int, lanes: int, frame_stack: int) -> tuple[int, int]:
    """(steps, observation rows) of each lane. Raises ValueError unless every lane holds a step."""
    if lanes < 1 or capacity < lanes or frame_stack < 1:
        came = f"{lanes} lanes, capacity {capacity}, frame_stack {frame_stack}"
        raise ValueError(f"expected lanes >= 1, capacity >= lanes and frame_stack >= 1, got {came}")
    steps = capacity // lanes
    return steps, steps + max(steps // 8, min(steps, 1024)) + frame_stack


class Rings:
    """The counters of `lanes` environments with `capacity // lanes` steps each."""

    def __init__(self, capacity: int, lanes: int, frame_stack: int) -> None:
        self.lanes, self.frame_stack, self._lane = lanes, frame_stack, np.arange(lanes)
        self.steps, self.rows = ring_sizes(capacity, lanes, frame_stack)
        self.added = 0  # steps per lane
        self.first = 0  # number of the oldest step that can be sampled
        self.rows_added = np.zeros(lanes, dtype=np.int64)
        self.position = np.zeros(lanes, dtype=np.int64)  # the next step's position in its episode
        self.needed = np.zeros((self.steps, lanes), dtype=np.int64)  # number of the oldest row that each step reads

    def __len__(self) -> int:
        return (self.added - self.first) * self.lanes

    @property
    def first_entry(self) -> int:
        return self.first % self.steps * self.lanes

    @property
    def filled_steps(self) -> int:
        return min(self.added, self.steps)

    @property
    def filled_rows(self) -> int:
        return min(int(self.rows_added.max()), self.rows)

    @property
    def longest_block(self) -> int:
        """Largest number of steps per `append`, which must not write a step or row twice."""
        return min(self.steps, self.rows // 2)

    def append(self, positions: Array, began: Array, ended: Array) -> Written:
        """Make room for up to `longest_block` steps of every lane; all arguments are `[T, lanes]`.

        positions, began: from `positions_of`; ended: a step is its episode's last.
        """
        count, lanes, step = len(ended), self.lanes, self.added % self.steps
        assert count <= self.longest_block
        rows = self.rows_added - 1 + (began if count == 1 else np.arange(count)[:, None] + began.cumsum(0))
        places: slice | Array = slice(step, step + count)
        steps: slice | Array = slice(step * lanes, (step + count) * lanes)
        if step + count > self.steps:
            places = np.arange(step, step + count) % self.steps
            steps = (places[:, None] * lanes + self._lane).reshape(-1)
        self.needed[places] = rows if self.frame_stack == 1 else rows - np.minimum(positions, self.frame_stack - 1)
        last = (self.added - 1) % self.steps * lanes
        written = Written(
            steps=steps,
            previous=slice(last, last + lanes) if self.added else None,
            step_rows=self._row_entries(rows),
            next_rows=self._row_entries(rows + 1),
        )
        self.position = position_after(positions, ended)
        self.rows_added = rows[-1] + 2
        self.added += count
        self._forget()
        return written

    def append_episodes(self, step_rows: Array, rows: int) -> tuple[Array, Array]:
        """Make room for whole episodes in the only lane; returns the entries of their steps and of their `rows` rows.

        step_rows: `[steps]`, the row of each step, counted from 0.
        """
        steps = (self.added + np.arange(len(step_rows))) % self.steps
        first = int(self.rows_added[0])
        self.needed[steps, 0] = first + step_rows
        self.added += len(step_rows)
        self.rows_added += rows
        self._forget()
        return steps, (first + np.arange(rows)) % self.rows

    def _forget(self) -> None:
        """Drop the steps that were overwritten, or whose rows were."""
        self.first = max(self.first, self.added - self.steps)
        while (self.needed[self.first % self.steps] < self.rows_added - self.rows).any():
            self.first += 1

    def _row_entries(self, numbers: Array) -> Array:
        return numbers % self.rows * self.lanes + self._lane

    def state_dict(self) -> dict[str, Any]:
        return {
            "size": [self.steps, self.rows, self.lanes, self.frame_stack],
            "added": self.added,
            "first": self.first,
            "rows_added": self.rows_added.tolist(),
            "position": self.position.tolist(),
            "needed": torch.from_numpy(self.needed[: self.filled_steps].copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        size = [self.steps, self.rows, self.lanes, self.frame_stack]
        if (saved := list(state["size"])) != size:
            advice = "build it with the same capacity, lanes and frame_stack"
            raise ValueError(f"expected a replay of [steps, rows, lanes, frame_stack] {size}, got {saved}; {advice}")
        self.added, self.first = int(state["added"]), int(state["first"])
        self.rows_added = np.array(state["rows_added"], dtype=np.int64)
        self.position = np.array(state["position"], dtype=np.int64)
        needed = state["needed"].cpu().numpy()
        self.needed = np.zeros_like(self.needed)
        self.needed[: len(needed)] = needed


def saved_rings(rings: Rings | None, time_limit: TimeLimit, state: Mapping[str, Any]) -> Rings:
    """New counters from a replay's `state`. Raises TypeError offline, ValueError for other settings."""
    if rings is None:
        raise TypeError("an offline replay has no state to load")
    if (saved := state.get("time_limit")) != time_limit:
        advice = "build it with the same time_limit"
        raise ValueError(f'expected a replay with time_limit="{time_limit}", got {saved!r}; {advice}')
    rings = copy.copy(rings)
    rings.load_state_dict(state["rings"])
    return rings
