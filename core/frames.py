"""Frame stacks: what a policy saw last, as one observation (Mnih et al. 2015), where a single frame hides what moves.

Every frame is stored once, in data and in a replay, which gathers stacks `[*B, k, …]` when it is sampled. A policy
keeps the last k frames in its carry. Both have the oldest frame first, and repeat an episode's first one before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from herdbook.core.types import Tree, tree_map


class Frames:
    """Stacks of `count` observations of a space, as networks see them: of `space`.

    The frames of an image are its channels, oldest first: grey ones [H, W] or [1, H, W] become [H, W, k], others
    [H, W, C] become [H, W, k·C]. Vectors [D] become [k·D], and a Dict is stacked part by part.

    Raises ValueError for observations of another kind.
    """

    def __init__(self, space: Space[Any], count: int) -> None:
        self.count, self.space = count, stacked_space(space, count)
        self._frame = space

    def __call__(self, stacks: Tree) -> Tree:
        """Stacks `[*B, k, …]` as observations `[*B, …]` of `space`; those of grey frames are a view."""
        if isinstance(self._frame, spaces.Dict):
            return {key: _laid_out(stacks[key], part.shape) for key, part in self._frame.spaces.items()}
        return _laid_out(stacks, self._frame.shape)

    def push(self, stacks: Tree, frames: Tree, reset: Tensor) -> Tree:
        """The stacks `[N, k, …]` that end with `frames` `[N, …]`; where `reset` `[N]`, of nothing but these.

        stacks: those of the step before, or None: there was none.
        """
        if stacks is None:
            return tree_map(self._repeated, frames)

        def pushed(frame: Tensor, stack: Tensor) -> Tensor:
            moved = torch.cat((stack[:, 1:], frame.unsqueeze(1)), 1)
            return torch.where(reset.view(-1, *[1] * frame.dim()), frame.unsqueeze(1), moved)

        return tree_map(pushed, frames, stacks)

    def _repeated(self, frame: Tensor) -> Tensor:
        return frame.unsqueeze(1).repeat_interleave(self.count, 1)  # a copy: the environment may write over its frame


def stacked_space(space: Space[Any], count: int) -> Space[Any]:
    """The space of `Frames(space, count)`. Raises ValueError for observations that are no images, vectors or Dict."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, stacked_space(part, count)) for key, part in space.spaces.items()])
    if not isinstance(space, spaces.Box) or len(space.shape) not in (1, 2, 3):
        raise ValueError(f"frame_stack: expected image or vector observations to stack {count} of, got {space}")
    low, high = (
        _laid_out(torch.from_numpy(np.stack([bound] * count)), space.shape).numpy() for bound in (space.low, space.high)
    )
    return spaces.Box(low, high, dtype=space.dtype.type)


def _laid_out(stacks: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Stacks `[*B, k, *shape]` with their frames in the last axis."""
    assert shape is not None  # a Box has one
    if len(shape) == 1:
        return stacks.flatten(-2)
    if len(shape) == 2:
        return stacks.movedim(-3, -1)
    if shape[0] == 1 and shape[-1] not in (1, 3):
        return stacks.squeeze(-3).movedim(-3, -1)
    return stacks.movedim(-4, -2).flatten(-2)
