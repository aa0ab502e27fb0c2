"""Where the steps and observation rows of an online replay are written, and which of them can be drawn.

Counting happens on the host, in ever-growing numbers; a position is the number modulo the ring's size. All lanes step
together, so they share the step ring; rows differ, because every episode has one row more than it has steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from herdbook.core.types import Array


class Written(NamedTuple):
    """Where one step of every lane goes. Entries are position · lanes + lane."""

    step: int
    """Position in the step ring."""
    previous: int | None
    """Position of the step before, None for the first ever."""
    began: Array
    """Lanes in which an episode begins."""
    first_rows: Array
    """Row entries of the first observations of these."""
    step_rows: Array
    """`[lanes]`: the row entry of each step."""
    next_rows: Array
    """`[lanes]`: the row entry of each next observation."""
    positions: Array
    """`[lanes]`: steps since the episode's first."""


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

    def append(self, ended: Array) -> Written:
        """Make room for one step of every lane; `ended` `[lanes]`: it is its episode's last."""
        positions, began = self.position, (self.position == 0).nonzero()[0]
        if len(began):
            self.rows_added[began] += 1
        current = self.rows_added - 1
        step_rows, step = self._row_entries(current), self.added % self.steps
        self.needed[step] = current if self.frame_stack == 1 else current - np.minimum(positions, self.frame_stack - 1)
        written = Written(
            step=step,
            previous=(self.added - 1) % self.steps if self.added else None,
            began=began,
            first_rows=step_rows[began],
            step_rows=step_rows,
            next_rows=self._row_entries(self.rows_added),
            positions=positions,
        )
        self.rows_added += 1
        self.added += 1
        self.position = positions + 1
        self.position[ended] = 0
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


def check_memory(needed: int, device: torch.device | str, what: str) -> None:
    """Raise MemoryError where `needed` bytes for `what` are not free on `device`."""
    free = free_memory(torch.device(device))
    if free is not None and needed > free:
        raise MemoryError(
            f"a replay of {what} needs {needed:,} bytes on {device}, which has {free:,} free; "
            "lower the capacity, or use smaller observations"
        )


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
