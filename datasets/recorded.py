"""The common part of recorded episodes of one agent and of many."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.core.trees import indexed
from herdbook.core.types import Array, Tree
from herdbook.datasets.layout import offsets_of, ranges, row_offsets, rows_of_steps
from herdbook.datasets.learned import LearnedBy
from herdbook.datasets.validation import DataError, leaves

E = TypeVar("E")
"""The type of a single episode."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded(ABC, Generic[E]):
    """Episodes in flat arrays (`datasets.layout`); a subclass adds the arrays and lists their fields."""

    step_fields: ClassVar[tuple[str, ...]]
    """Fields with one entry for each step."""
    row_fields: ClassVar[tuple[str, ...]]
    """Fields with T+1 rows for an episode of T steps."""

    offsets: Array
    """`[episodes + 1]` int64: the steps of episode e are `offsets[e]:offsets[e + 1]`."""
    environment: EnvironmentSpec | None = None
    reference_scores: ReferenceScores | None = None
    """Reference returns; the team's for many agents."""
    episode_metadata: tuple[Mapping[str, Any], ...] = ()
    """One mapping per episode (`seed`, `id`, …), or empty."""
    source: str = "episodes"
    """Dataset id or path, with which every error message begins."""
    learned_by: tuple[LearnedBy, ...] = ()
    """The learned policies that acted, as far as known."""

    @abstractmethod
    def episode(self, number: int) -> E:
        """One episode. Raises IndexError outside `[0, len)`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_steps(self) -> int:
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = self._arrays((*self.step_fields, *self.row_fields))
        return self.offsets.nbytes + sum(array.nbytes for _, array in arrays)

    @cached_property
    def step_rows(self) -> Array:
        """`[steps]` int64: the observation row of each step; its next observation is in the following row."""
        return rows_of_steps(self.offsets)

    def lengths(self) -> Array:
        """Number of steps of each episode. `[episodes]` int64"""
        return np.diff(self.offsets)

    def select(self, numbers: Sequence[int] | Array) -> Self:
        """The episodes with these numbers, in this order. Raises IndexError outside `[0, len)`."""
        chosen = np.asarray(numbers, dtype=np.int64).reshape(-1)
        if len(chosen) and not (0 <= chosen.min() and chosen.max() < len(self)):
            raise IndexError(f"expected episodes in [0, {len(self) - 1}], got {chosen.min()} to {chosen.max()}")
        lengths = self.lengths()[chosen]
        steps = ranges(self.offsets[chosen], lengths)
        rows = ranges(row_offsets(self.offsets)[chosen], lengths + 1)
        return replace(
            self,
            **self._at(steps, rows),
            **self._of_episodes(chosen),
            offsets=offsets_of(lengths),
        )

    def split(self, fraction: float, generator: np.random.Generator | None = None) -> tuple[Self, Self]:
        """Split into about `fraction` of the episodes and the rest; each part holds at least one.

        Episodes are in stored order, or shuffled by `generator`.

        Raises ValueError for a fraction outside (0, 1) and for fewer than 2 episodes.
        """
        count = len(self)
        if not 0 < fraction < 1 or count < 2:
            raise ValueError(f"expected a fraction in (0, 1) of 2 episodes or more, got {fraction} of {count}")
        order = np.arange(count) if generator is None else generator.permutation(count)
        first = min(max(round(fraction * count), 1), count - 1)
        return self.select(order[:first]), self.select(order[first:])

    def filter(self, keep: Array | Sequence[bool] | Callable[[E], bool]) -> Self:
        """The episodes selected by `keep`, `[episodes]` bool or a function of one episode.

        Example: `episodes.filter(episodes.returns() > 1000)`. Raises DataError if none is left, ValueError unless
        there is one bool per episode.
        """
        chosen = np.array([keep(self.episode(i)) for i in range(len(self))]) if callable(keep) else np.asarray(keep)
        if chosen.dtype != np.bool_ or chosen.shape != (len(self),):
            raise ValueError(f"expected {len(self)} booleans, one per episode; got {chosen.dtype} {chosen.shape}")
        return self.select(np.flatnonzero(chosen))

    def _at(self, steps: Array | slice, rows: Array | slice) -> dict[str, Any]:
        """Each field at these steps or rows; None for absent fields."""
        places = {**dict.fromkeys(self.step_fields, steps), **dict.fromkeys(self.row_fields, rows)}
        return {name: indexed(getattr(self, name), place) for name, place in places.items()}

    def _of_episodes(self, chosen: Array) -> dict[str, Any]:
        """The fields about whole episodes for the episodes with these numbers."""
        return {"episode_metadata": tuple(self.episode_metadata[i] for i in chosen) if self.episode_metadata else ()}

    def _arrays(self, names: Iterable[str]) -> Iterator[tuple[str, Array]]:
        """(name for messages, array) of each array in these fields."""
        for name in names:
            if getattr(self, name) is not None:
                yield from leaves(getattr(self, name), name)

    def _followed_by(self, others: Sequence[Self]) -> dict[str, Any]:
        """The fields of this class for a concatenation."""
        parts = (self, *others)
        metadata = tuple(m for part in parts for m in part.episode_metadata or ({},) * len(part))
        agreed = {
            name: value if all(getattr(other, name) == value for other in others) else None
            for name, value in (("environment", self.environment), ("reference_scores", self.reference_scores))
        }
        return {
            "offsets": offsets_of(np.concatenate([part.lengths() for part in parts])),
            "episode_metadata": metadata if any(metadata) else (),
            "source": " + ".join(dict.fromkeys(part.source for part in parts)),
            "learned_by": tuple(dict.fromkeys(policy for part in parts for policy in part.learned_by)),
            **agreed,
        }

    def _check_metadata(self) -> None:
        count = len(self.episode_metadata)
        if count not in (0, len(self)):
            raise DataError(f"{self.source}: expected metadata for {len(self)} episodes or none, got {count}")


def joined(source: str, name: str, values: Sequence[Tree]) -> Tree:
    """Leaves concatenated over all episodes. Raises DataError if their structures or shapes differ."""
    try:
        if isinstance(values[0], dict):
            if odd := [value for value in values if set(value) != set(values[0])]:
                raise DataError(
                    f"{source}: expected {name} with {sorted(values[0])} in every episode, got {sorted(odd[0])}"
                )
            return {key: joined(source, f"{name}[{key!r}]", [v[key] for v in values]) for key in values[0]}
        return np.concatenate([np.asarray(value) for value in values])
    except (ValueError, TypeError, KeyError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source}: expected {name} of the same form in every episode: {error}") from error


def summary(name: str, values: Array, *statistics: str) -> dict[str, Any]:
    """Statistics of `values` by name, such as `return_mean`; each is a method of the array."""
    return {f"{name}_{statistic}": getattr(values, statistic)() for statistic in statistics}


def digest(arrays: Iterable[tuple[str, Array]], texts: Iterable[str]) -> str:
    """SHA-256 (hex) of named arrays and of texts."""
    sha = hashlib.sha256()
    for name, array in arrays:
        sha.update(f"{name} {array.dtype.str} {array.shape};".encode())
        sha.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    for text in texts:
        sha.update(text.encode())
    return sha.hexdigest()


def space_text(space: Space[Any]) -> str:
    """Complete text of a space; its repr abbreviates long bounds."""
    if isinstance(space, spaces.Dict):
        return "Dict" + str({name: space_text(part) for name, part in space.spaces.items()})
    if isinstance(space, spaces.Box):
        return f"Box {space.shape} {space.dtype} {space.low.tobytes().hex()} {space.high.tobytes().hex()}"
    return repr(space)
