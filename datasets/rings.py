"""Where the steps and observation rows of an online replay are written, and which of them can be drawn.

Counting happens on the host, in ever-growing numbers; a position is the number modulo the ring's size. All lanes step
together, so they share the step ring; rows differ, because every episode has one row more than it has steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from herdbook.core.types import Array, TimeLimit


class Written(NamedTuple):
    """Where T steps of every lane go. Entries are position · lanes + lane."""

    steps: slice | Array
    """`[T · lanes]`: the entries of the steps."""
    previous: slice | None
    """The entries of the step before, None for the first ever."""
    step_rows: Array
    """`[T, lanes]`: the row entry of each step."""
    next_rows: Array
    """`[T, lanes]`: the row entry of each next observation."""


def positions_of(before: Array, ended: Array) -> tuple[Array, Array]:
    """Where T steps stand in their episodes: (steps since the first, whether it is the first), both `[T, lanes]`.

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
    """Where the next step of each lane stands, `[lanes]`, after steps at these positions; both `[T, lanes]`."""
    return np.where(ended[-1], 0, positions[-1] + 1)


def ring_sizes(capacity: int, lanes: int, frame_stack: int) -> tuple[int, int]:
    """(steps, observation rows) of each lane. Raises ValueError unless every lane holds a step."""
    if lanes < 1 or capacity < lanes or frame_stack < 1:
        raise ValueError(
            f"expected lanes >= 1, a capacity of at least one step a lane and frame_stack >= 1, "
            f"got {lanes} lanes, capacity {capacity}, frame_stack {frame_stack}"
        )
    steps = capacity // lanes
    return steps, steps + max(steps // 8, min(steps, 1024)) + frame_stack


class Rings:
    """The counters of `lanes` environments with `capacity // lanes` steps each."""

    def __init__(self, capacity: int, lanes: int, frame_stack: int) -> None:
        self.lanes, self.frame_stack, self._lane = lanes, frame_stack, np.arange(lanes)
        self.steps, self.rows = ring_sizes(capacity, lanes, frame_stack)
        self.added = 0  # steps per lane
        self.first = 0  # number of the oldest step that can be drawn
        self.rows_added = np.zeros(lanes, dtype=np.int64)
        self.position = np.zeros(lanes, dtype=np.int64)  # of the step that comes next
        self.needed = np.zeros((self.steps, lanes), dtype=np.int64)  # number of the oldest row that each step needs

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
        """How many steps at most `append` takes, so that it writes no step or row twice."""
        return min(self.steps, self.rows // 2)

    def append(self, positions: Array, began: Array, ended: Array) -> Written:
        """Make room for up to `longest_block` steps of every lane; all arguments are `[T, lanes]`.

        positions, began: what `positions_of` gave for them; ended: a step is its episode's last.
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
        """Make room for whole episodes in the only lane: the entries of their steps, and of their `rows` rows.

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
        """The steps that were written over, and those whose rows were, can be drawn no more."""
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
        if list(state["size"]) != size:
            raise ValueError(
                f"expected a replay of [steps, rows, lanes, frame_stack] {size}, got {list(state['size'])}; "
                "build it with the same capacity, lanes and frame_stack"
            )
        self.added, self.first = int(state["added"]), int(state["first"])
        self.rows_added = np.array(state["rows_added"], dtype=np.int64)
        self.position = np.array(state["position"], dtype=np.int64)
        needed = state["needed"].cpu().numpy()
        self.needed = np.zeros_like(self.needed)
        self.needed[: len(needed)] = needed


def saved_rings(rings: Rings | None, time_limit: TimeLimit, state: Mapping[str, Any]) -> Rings:
    """New counters as a replay's `state` has them. Raises TypeError offline, ValueError for one built otherwise."""
    if rings is None:
        raise TypeError("an offline replay has no state to load")
    if state.get("time_limit") != time_limit:
        raise ValueError(
            f'expected a replay with time_limit="{time_limit}", got {state.get("time_limit")!r}; '
            "build it with the same time_limit"
        )
    rings = copy.copy(rings)
    rings.load_state_dict(state["rings"])
    return rings
