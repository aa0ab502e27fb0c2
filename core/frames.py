"""Frame stacks: the last k observations as one input (Mnih et al. 2015), since a single frame hides motion.

Datasets and replays store every frame once and gather stacks `[*B, k, …]` when sampled; a policy keeps the last k
frames in its carry. Both put the oldest frame first and pad with the first frame of the episode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from herdbook.core.spaces import channels_first
from herdbook.core.types import Tree, tree_map


class Frames:
    """Lays out stacks of `count` observations as network inputs, elements of `space`.

    Image frames become channels, oldest first: grey frames [H, W] become [H, W, k], and [H, W, C] or [C, H, W] become
    [H, W, k·C]. Vectors [D] become [k·D]. A Dict is stacked part by part. Raises ValueError for other spaces.
    """

    def __init__(self, space: Space[Any], count: int) -> None:
        self.count, self.space = count, stacked_space(space, count)
        self._frame = space

    def __call__(self, stacks: Tree) -> Tree:
        """Convert stacks `[*B, k, …]` to observations `[*B, …]` of `space`; a view for grey frames."""
        if isinstance(self._frame, spaces.Dict):
            return {key: _laid_out(stacks[key], part.shape) for key, part in self._frame.spaces.items()}
        return _laid_out(stacks, self._frame.shape)

    def push(self, stacks: Tree, frames: Tree, reset: Tensor) -> Tree:
        """Append `frames` `[N, …]` to `stacks` `[N, k, …]`; repeat the frame where `reset` `[N]` and without stacks."""
        if stacks is None:
            return tree_map(self._repeated, frames)

        def pushed(frame: Tensor, stack: Tensor) -> Tensor:
            moved = torch.cat((stack[:, 1:], frame.unsqueeze(1)), 1)
            return torch.where(reset.view(-1, *[1] * frame.dim()), frame.unsqueeze(1), moved)

        return tree_map(pushed, frames, stacks)

    def _repeated(self, frame: Tensor) -> Tensor:
        return frame.unsqueeze(1).repeat_interleave(self.count, 1)  # a copy, because environments may reuse memory


def stacked_space(space: Space[Any], count: int) -> Space[Any]:
    """The space of `Frames(space, count)`. Raises ValueError unless observations are images, vectors or a Dict."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, stacked_space(part, count)) for key, part in space.spaces.items()])
    if not isinstance(space, spaces.Box) or len(space.shape) not in (1, 2, 3):
        raise ValueError(f"frame_stack: expected image or vector observations to stack {count} of, got {space}")
    bounds = (torch.from_numpy(np.stack([bound] * count)) for bound in (space.low, space.high))
    low, high = (_laid_out(bound, space.shape).numpy() for bound in bounds)
    return spaces.Box(low, high, dtype=space.dtype.type)


def _laid_out(stacks: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Move the frames of stacks `[*B, k, *shape]` to the last axis."""
    assert shape is not None  # true for every Box
    if len(shape) == 1:
        return stacks.flatten(-2)
    if len(shape) == 2:
        return stacks.movedim(-3, -1)
    if channels_first(shape):
        stacks = stacks.movedim(-3, -1)
    return stacks.movedim(-4, -2).flatten(-2)
