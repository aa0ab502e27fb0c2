"""What grows by the steps that environments take: replays, rollouts, running moments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from herdbook.core.types import Array, Tree

STEP_FIELDS = ("observations", "actions", "rewards", "terminated", "truncated", "next_observations")
"""What is taken of a step, in the order of the arguments."""


class Growing(ABC):
    """Takes steps in blocks by `extend`, or one by one by `add`."""

    @abstractmethod
    def extend(
        self, observations: Tree, actions: Any, rewards: Any, terminated: Any, truncated: Any, next_observations: Tree
    ) -> None:
        """Take T successive steps of every lane; all arguments are arrays `[T, lanes, …]`. T = 0 changes nothing."""

    @abstractmethod
    def cut(self, lanes: Array) -> None:
        """The episodes of these lanes (a mask `[lanes]`) were given up: the step that was taken last is their last."""

    def add(
        self, observations: Tree, actions: Any, rewards: Any, terminated: Any, truncated: Any, next_observations: Tree
    ) -> None:
        """Take one step of every lane; all arguments are `[lanes, …]`."""
        step = (observations, actions, rewards, terminated, truncated, next_observations)
        self.extend(*map(_one, step))


class Following(Protocol):
    """An algorithm that keeps statistics of every played step, as it declares by `needs.follows`."""

    @property
    def follows(self) -> Growing | None:
        """Takes in every step once, as the replay does. None: no statistics are kept."""
        ...


def _one(values: Tree) -> Tree:
    """With a leading axis of one step."""
    if isinstance(values, Mapping):
        return {name: _one(part) for name, part in values.items()}
    return (values if isinstance(values, Tensor) else np.asarray(values))[None]
