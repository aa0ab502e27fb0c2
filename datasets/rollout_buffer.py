"""`RolloutBuffer`: the steps since the last update, in order, for on-policy algorithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herdbook.core.growing import Growing
from herdbook.core.types import Array, Segments, Steps, TimeLimit, Tree, to_numpy, tree_map
from herdbook.datasets.rewards import PlayedRewards
from herdbook.datasets.rings import position_after, positions_of
from herdbook.datasets.sampling import checked_time_limit


class RolloutBuffer(Growing):
    """Filled by `extend` and `add`, as `ReplayBuffer`, and emptied by `take`.

    time_limit: "terminal" turns every truncation into a termination.
    reward: replaces the rewards of steps when they are added.
    reward_transform: maps rewards `[T, lanes]` float32 when they are added, after `reward`.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        time_limit: TimeLimit = "bootstrap",
        reward: PlayedRewards | None = None,
        reward_transform: Callable[[Array], Array] | None = None,
    ) -> None:
        self.reward, self.reward_transform = reward, reward_transform
        self.device, self.time_limit = torch.device(device), checked_time_limit(time_limit)
        self._blocks: list[dict[str, Tree]] = []
        self._positions: Array | None = None  # position of each lane's next step in its episode

    def __len__(self) -> int:
        return sum(block["rewards"].size for block in self._blocks)

    def extend(self, steps: Steps) -> None:
        """Append T successive steps of every lane, leaves `[T, lanes, …]`.

        Arrays are kept, not copied, except rewards and `reset`.

        Raises ValueError, and adds nothing, for a reward that overflows float32.
        """
        if not len(steps.rewards):
            return
        steps = steps if self.reward is None else self.reward(steps)
        with np.errstate(over="ignore"):
            rewards = steps.rewards.astype(np.float32)
        if not np.isfinite(rewards).all():
            raise ValueError(f"expected rewards that float32 holds, got {steps.rewards[~np.isfinite(rewards)][0]}")
        if self.reward_transform is not None:
            rewards = self.reward_transform(rewards)
        terminated, truncated = steps.terminated, steps.truncated
        over = terminated | truncated
        if self.time_limit == "terminal":
            terminated, truncated = over, np.zeros_like(over)
        before = np.zeros(rewards.shape[1], dtype=np.int64) if self._positions is None else self._positions
        positions, began = positions_of(before, over)
        self._positions = position_after(positions, over)
        block = {
            "observations": steps.observations,
            "actions": steps.actions,
            "rewards": rewards,
            "terminated": terminated,
            "truncated": truncated,
            "next_observations": steps.next_observations,
            "timesteps": positions,
            "reset": began if steps.reset is None else np.array(steps.reset),
        }
        self._blocks.append(block if steps.task is None else {**block, "task": steps.task})

    def cut(self, lanes: Array) -> None:
        """Give up the episodes of these lanes (a mask `[lanes]`): the newest step truncates them."""
        if self._positions is not None:
            self._positions = np.where(lanes, 0, self._positions)
        if self._blocks:
            block = self._blocks[-1]
            block["truncated"] = block["truncated"].copy()
            block["truncated"][-1] |= lanes & ~block["terminated"][-1]

    def take(self) -> Segments:
        """Return all steps since the last call, `[lanes, T, …]`, and empty the buffer.

        A lane may hold several episodes: one ends with a flag, and the next begins at timestep 0. Raises ValueError if
        there are no steps.
        """
        if not self._blocks:
            raise ValueError("no steps were added since the last update")
        stacked: dict[str, Tree] = {
            name: tree_map(self._by_lane, *(block[name] for block in self._blocks)) for name in self._blocks[0]
        }
        self._blocks = []
        return Segments(**stacked, mask=torch.ones_like(stacked["terminated"]))

    def _by_lane(self, *blocks: Array) -> Tensor:
        """Blocks `[T, lanes, …]` as one tensor `[lanes, ΣT, …]`."""
        _, lanes, *shape = blocks[0].shape
        whole = np.empty((lanes, sum(map(len, blocks)), *shape), blocks[0].dtype)
        np.concatenate([block.swapaxes(0, 1) for block in blocks], 1, out=whole)
        return torch.from_numpy(whole).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "time_limit": self.time_limit,
            "blocks": [tree_map(torch.from_numpy, block) for block in self._blocks],
            "positions": None if self._positions is None else torch.from_numpy(self._positions),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`. Raises ValueError for another time limit or an older version's state."""
        if state["time_limit"] != self.time_limit:
            raise ValueError(f'expected time_limit="{self.time_limit}", got {state["time_limit"]!r}')
        if "blocks" not in state:
            raise ValueError("expected a rollout of blocks, got a checkpoint of an older version")
        self._blocks = [to_numpy(block) for block in state["blocks"]]
        for block in self._blocks:
            block.setdefault("reset", block["timesteps"] == 0)  # older versions did not store it
        self._positions = None if state["positions"] is None else to_numpy(state["positions"])
