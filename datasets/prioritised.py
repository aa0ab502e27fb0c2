"""`PrioritisedReplay`: an online replay with prioritised sampling (Schaul et al. 2016).

    P(i) = p_i^α / Σ_j p_j^α,   w_i = (N P(i))^−β / max_j w_j

A binary tree on the host holds the sums, so sampling and updating a batch cost a few passes over its depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herdbook.core.growing import Growing
from herdbook.core.types import Array, Spec, Steps, Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer


class SumTree:
    """Non-negative numbers, initially 0, with prefix sums for sampling in proportion to them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.leaves = 1 << max(size - 1, 0).bit_length()
        self.nodes = np.zeros(2 * self.leaves)  # node k has the children 2k and 2k + 1; leaf i is node leaves + i

    @property
    def total(self) -> float:
        return float(self.nodes[1])

    def __getitem__(self, indices: Array) -> Array:
        values: Array = self.nodes[self.leaves + indices]
        return values

    def __setitem__(self, indices: Array, values: Any) -> None:
        nodes = self.leaves + indices
        self.nodes[nodes] = values
        while len(nodes) and nodes[0] > 1:
            nodes = nodes >> 1
            if len(nodes) > 1:
                nodes = np.unique(nodes)
            self.nodes[nodes] = self.nodes[2 * nodes] + self.nodes[2 * nodes + 1]

    def find(self, heights: Array) -> Array:
        """For each height in [0, total), the first index whose prefix sum exceeds it."""
        nodes, heights = np.ones(len(heights), dtype=np.int64), heights.copy()
        while nodes[0] < self.leaves:
            left = 2 * nodes
            below = self.nodes[left]
            right = (heights >= below) & (self.nodes[left + 1] > 0)  # despite rounding, never select a number of 0
            heights -= np.where(right, below, 0)
            nodes = left + right
        indices: Array = nodes - self.leaves
        return indices


class PrioritisedReplay(Growing):
    """An online replay for one seed with prioritised sampling; new steps get the largest priority so far.

    exponent: α; 0 samples uniformly.
    """

    def __init__(self, replay: ReplayBuffer, exponent: float = 0.6) -> None:
        if replay.rings is None:
            raise TypeError("expected an online replay (ReplayBuffer.online), got an offline one")
        self.replay, self.rings, self.exponent = replay, replay.rings, exponent
        self.tree = SumTree(self.rings.steps * self.rings.lanes)
        self.largest = 1.0

    def __len__(self) -> int:
        return len(self.replay)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return self.replay.nbytes + self.tree.nodes.nbytes

    def extend(self, steps: Steps) -> None:
        oldest, newest = self.rings.first, self.rings.added
        self.replay.extend(steps)
        self.tree[self._entries(oldest, self.rings.first)] = 0  # these steps were overwritten
        self.tree[self._entries(max(newest, self.rings.first), self.rings.added)] = self.largest**self.exponent

    def cut(self, lanes: Array) -> None:
        self.replay.cut(lanes)

    def to_episodes(self, spec: Spec, **fields: Any) -> Episodes:
        """As `ReplayBuffer.to_episodes`."""
        return self.replay.to_episodes(spec, **fields)

    def _entries(self, first: int, last: int) -> Array:
        """The entries, in all lanes, of steps `first` to `last - 1`."""
        positions = np.arange(first, last) % self.rings.steps
        entries: Array = (positions[:, None] * self.rings.lanes + np.arange(self.rings.lanes)).reshape(-1)
        return entries

    def sample(
        self,
        batch_size: int,
        generators: Sequence[torch.Generator],
        *,
        discount: float,
        n_step: int = 1,
        importance_exponent: float = 1.0,
        frame_stack: int = 1,
    ) -> Transitions:
        """Transitions `[B, …]` with `indices` and `weights`, stratified: one from each of B equal parts of the total.

        importance_exponent: β.
        frame_stack: as in `ReplayBuffer.gather`.

        Raises ValueError for more than one generator, and for an empty replay.
        """
        if len(generators) != 1:
            raise ValueError(f"expected one generator, as priorities belong to one seed, got {len(generators)}")
        if not len(self.replay):
            raise ValueError("the replay is empty: add steps before sampling")
        drawn = torch.rand(batch_size, generator=generators[0], device=generators[0].device)
        heights = (np.arange(batch_size) + drawn.cpu().double().numpy()) / batch_size * self.tree.total
        indices = self.tree.find(heights)
        shares = self.tree[indices] / self.tree.total
        weights = (len(self.replay) * shares) ** -importance_exponent
        entries = torch.from_numpy(indices).to(self.replay.device)
        batch = self.replay.gather(entries, discount=discount, n_step=n_step, frame_stack=frame_stack)
        scaled = torch.from_numpy((weights / weights.max()).astype(np.float32)).to(self.replay.device)
        return replace(batch, indices=entries, weights=scaled)

    def set_priorities(self, indices: Tensor, priorities: Tensor) -> None:
        """Set the priorities `[B]` of the steps at `indices` `[B]`; the last one wins for a repeated index.

        Steps that were overwritten since are ignored.
        """
        entries, values = indices.cpu().numpy(), priorities.double().cpu().numpy()
        there = self.tree[entries] > 0
        self.largest = max(self.largest, float(values.max()))
        self.tree[entries[there]] = values[there] ** self.exponent

    def state_dict(self) -> dict[str, Any]:
        filled = self.rings.filled_steps * self.rings.lanes
        numbers = self.tree.nodes[self.tree.leaves : self.tree.leaves + filled]
        return {**self.replay.state_dict(), "priorities": torch.from_numpy(numbers.copy()), "largest": self.largest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a replay with the same settings. Raises ValueError as `ReplayBuffer`."""
        self.replay.load_state_dict(state)
        assert self.replay.rings is not None  # see the constructor
        self.rings, self.largest = self.replay.rings, float(state["largest"])
        self.tree = SumTree(self.tree.size)
        numbers = state["priorities"].cpu().numpy()
        self.tree[np.arange(len(numbers))] = numbers
