"""`Rollouts`: the steps since the last update, in order, for algorithms that learn from their newest data alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herdbook.core.types import Array, Segments, TimeLimit, Tree, to_numpy, tree_map
from herdbook.datasets.replay import checked_time_limit

_NAMES = ("observations", "actions", "rewards", "terminated", "truncated", "next_observations")


class Rollouts:
    """Filled step by step with `add`, as `ReplayBuffer` is, and emptied by `take`.

    time_limit: "terminal" makes every truncation a termination.
    reward_transform: changes rewards `[lanes]` float32 as they are added.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        time_limit: TimeLimit = "bootstrap",
        reward_transform: Callable[[Array], Array] | None = None,
    ) -> None:
        self.reward_transform = reward_transform
        self.device, self.time_limit = torch.device(device), checked_time_limit(time_limit)
        self._steps: list[dict[str, Tree]] = []
        self._positions: Array | None = None  # of each lane's next step in its episode

    def __len__(self) -> int:
        return sum(len(step["rewards"]) for step in self._steps)

    def add(
        self, observations: Tree, actions: Any, rewards: Any, terminated: Any, truncated: Any, next_observations: Tree
    ) -> None:
        """Append one step of every lane; all arguments are arrays `[lanes, …]`.

        Raises ValueError, and adds nothing, for a reward that float32 does not hold.
        """
        with np.errstate(over="ignore"):
            rewards = np.asarray(rewards).astype(np.float32)
        if not np.isfinite(rewards).all():
            raise ValueError(f"expected rewards that float32 holds, got {rewards.tolist()}")
        if self.reward_transform is not None:
            rewards = self.reward_transform(rewards)
        values = (observations, actions, rewards, terminated, truncated, next_observations)
        if self.time_limit == "terminal":
            values = (observations, actions, rewards, terminated | truncated, truncated & ~truncated, next_observations)
        positions = np.zeros(len(rewards), dtype=np.int64) if self._positions is None else self._positions
        self._steps.append({**dict(zip(_NAMES, values, strict=True)), "timesteps": positions})
        self._positions = np.where(terminated | truncated, 0, positions + 1)

    def cut(self, lanes: Array) -> None:
        """The episodes of these lanes (a mask `[lanes]`) were given up: the step that was added last truncates them."""
        if self._positions is not None:
            self._positions = np.where(lanes, 0, self._positions)
        if self._steps:
            last = self._steps[-1]
            last["truncated"] = last["truncated"] | (lanes & ~last["terminated"])

    def take(self) -> Segments:
        """All steps since the last call, and none are left: `[lanes, T, …]`.

        A lane's steps may be of several episodes: one ends with a flag, and the next begins at timestep 0.

        Raises ValueError if there are none.
        """
        if not self._steps:
            raise ValueError("no steps were added since the last update")
        stacked: dict[str, Tree] = {
            name: tree_map(lambda *rows: self._tensor(np.stack(rows, 1)), *(step[name] for step in self._steps))
            for name in (*_NAMES, "timesteps")
        }
        self._steps = []
        return Segments(**stacked, mask=torch.ones_like(stacked["terminated"]))

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that it holds."""
        return {
            "time_limit": self.time_limit,
            "steps": [tree_map(torch.from_numpy, step) for step in self._steps],
            "positions": None if self._positions is None else torch.from_numpy(self._positions),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`. Raises ValueError for another time limit."""
        if state["time_limit"] != self.time_limit:
            raise ValueError(f'expected time_limit="{self.time_limit}", got {state["time_limit"]!r}')
        self._steps = [to_numpy(step) for step in state["steps"]]
        self._positions = None if state["positions"] is None else to_numpy(state["positions"])
