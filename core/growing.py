"""What grows by the steps that environments take: replays, rollouts, running moments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Protocol

import numpy as np
from torch import Tensor

from herdbook.core.types import Array, Steps, Tree

STEP_FIELDS = tuple(field.name for field in fields(Steps))


class Growing(ABC):
    """Takes steps in blocks by `extend`, or one by one by `add`."""

    @abstractmethod
    def extend(self, steps: Steps) -> None:
        """Take T successive steps of every lane, leaves `[T, lanes, …]`. T = 0 changes nothing."""

    @abstractmethod
    def cut(self, lanes: Array) -> None:
        """The episodes of these lanes (a mask `[lanes]`) were given up: the step that was taken last is their last."""

    def add(self, step: Steps) -> None:
        """Take one step of every lane, leaves `[lanes, …]`."""
        self.extend(Steps(*[_one(getattr(step, name)) for name in STEP_FIELDS]))


class Following(Protocol):
    """An algorithm that keeps statistics of every played step, as it declares by `needs.follows`."""

    @property
    def follows(self) -> Growing | None:
        """Takes in every step once, as the replay does. None: no statistics are kept."""
        ...


def _one(values: Tree) -> Tree:
    """With a leading axis of one step; None stays None."""
    if isinstance(values, Mapping):
        return {name: _one(part) for name, part in values.items()}
    if values is None:
        return None
    return (values if isinstance(values, Tensor) else np.asarray(values))[None]
