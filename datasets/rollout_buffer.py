"""`RolloutBuffer`: the steps played since the last update, in order, for algorithms that learn on-policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herdbook.core.growing import STEP_FIELDS, Growing
from herdbook.core.types import Array, Segments, TimeLimit, Tree, to_numpy, tree_map
from herdbook.datasets.replay import checked_time_limit
from herdbook.datasets.rings import position_after, positions_of

_NAMES = (*STEP_FIELDS, "timesteps")


class RolloutBuffer(Growing):
    """Filled with `extend` and `add`, as `ReplayBuffer` is, and emptied by `take`.

    time_limit: "terminal" makes every truncation a termination.
    reward_transform: changes rewards `[T, lanes]` float32 as they are added.
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
        self._blocks: list[dict[str, Tree]] = []
        self._positions: Array | None = None  # of each lane's next step in its episode

    def __len__(self) -> int:
        return sum(block["rewards"].size for block in self._blocks)

    def extend(
        self, observations: Tree, actions: Any, rewards: Any, terminated: Any, truncated: Any, next_observations: Tree
    ) -> None:
        """Append T successive steps of every lane; all arguments are arrays `[T, lanes, …]`. They are kept, not copied.

        Raises ValueError, and adds nothing, for a reward that float32 does not hold.
        """
        given = np.asarray(rewards)
        if not len(given):
            return
        with np.errstate(over="ignore"):
            rewards = given.astype(np.float32)
        if not np.isfinite(rewards).all():
            raise ValueError(f"expected rewards that float32 holds, got {given[~np.isfinite(rewards)][0]}")
        if self.reward_transform is not None:
            rewards = self.reward_transform(rewards)
        over = terminated | truncated
        if self.time_limit == "terminal":
            terminated, truncated = over, np.zeros_like(over)
        before = np.zeros(rewards.shape[1], dtype=np.int64) if self._positions is None else self._positions
        positions = positions_of(before, over)[0]
        self._positions = position_after(positions, over)
        values = (observations, actions, rewards, terminated, truncated, next_observations, positions)
        self._blocks.append(dict(zip(_NAMES, values, strict=True)))

    def cut(self, lanes: Array) -> None:
        """The episodes of these lanes (a mask `[lanes]`) were given up: the step that was added last truncates them."""
        if self._positions is not None:
            self._positions = np.where(lanes, 0, self._positions)
        if self._blocks:
            block = self._blocks[-1]
            block["truncated"] = block["truncated"].copy()
            block["truncated"][-1] |= lanes & ~block["terminated"][-1]

    def take(self) -> Segments:
        """All steps since the last call, and none are left: `[lanes, T, …]`.

        A lane's steps may be of several episodes: one ends with a flag, and the next begins at timestep 0.

        Raises ValueError if there are none.
        """
        if not self._blocks:
            raise ValueError("no steps were added since the last update")
        stacked: dict[str, Tree] = {
            name: tree_map(self._by_lane, *(block[name] for block in self._blocks)) for name in _NAMES
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
        """Everything that it holds."""
        return {
            "time_limit": self.time_limit,
            "blocks": [tree_map(torch.from_numpy, block) for block in self._blocks],
            "positions": None if self._positions is None else torch.from_numpy(self._positions),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`. Raises ValueError for another time limit, or an older version's."""
        if state["time_limit"] != self.time_limit:
            raise ValueError(f'expected time_limit="{self.time_limit}", got {state["time_limit"]!r}')
        if "blocks" not in state:
            raise ValueError("expected a rollout of blocks, the checkpoint is of an older version")
        self._blocks = [to_numpy(block) for block in state["blocks"]]
        self._positions = None if state["positions"] is None else to_numpy(state["positions"])
