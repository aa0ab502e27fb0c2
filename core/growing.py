"""Interface of everything that accumulates environment steps: replays, rollouts, running moments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from herdbook.core.trees import mapped
from herdbook.core.types import Array, Steps

STEP_FIELDS = tuple(field.name for field in fields(Steps))


class Growing(ABC):
    """Accumulates steps, in blocks (`extend`) or one at a time (`add`)."""

    @abstractmethod
    def extend(self, steps: Steps) -> None:
        """Append T consecutive steps of every lane, leaves `[T, lanes, …]`. T = 0 changes nothing."""

    @abstractmethod
    def cut(self, lanes: Array) -> None:
        """End the episodes of these lanes (a mask `[lanes]`) after the last step, because they were abandoned."""

    def add(self, step: Steps) -> None:
        """Append one step of every lane, leaves `[lanes, …]`."""
        self.extend(Steps(*[mapped(_one, getattr(step, name)) for name in STEP_FIELDS]))


class Following(Protocol):
    """An algorithm with `needs.follows`, which keeps statistics of every environment step."""

    @property
    def follows(self) -> Growing | None:
        """Receives every step once, as the replay does; None if no statistics are kept."""


def _one(values: Any) -> Any:
    """Add a leading axis of one step."""
    return (values if isinstance(values, Tensor) else np.asarray(values))[None]
