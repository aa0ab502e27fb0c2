"""Preferences between pairs of segments of recorded episodes, and how segments are drawn.

A segment is `length` successive steps of one episode, from its step `start` on: T actions and T+1 observations, so the
last segment of an episode of T steps begins at T − length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from herdbook.core.spaces import cast
from herdbook.core.types import Array
from herdbook.datasets.validation import DataError, located

FORMAT = 1
"""Version of the record that datasets store."""
_FIELDS = ("episodes", "starts", "lengths", "labels", "labelled_by")


@dataclass(frozen=True, kw_only=True, eq=False)
class PreferencePairs:
    """Labelled pairs of segments, immutable and validated when built; lists are converted to arrays.

    Raises DataError, with the pair, for shapes that disagree, no pairs, numbers that are no whole numbers, negative
    episodes or starts, lengths below 1, and labels that are NaN or outside [0, 1].
    """

    episodes: Array
    """`[pairs, 2]` int64: the episode of the first and of the second segment."""
    starts: Array
    """`[pairs, 2]` int64: the step of the episode at which the segment begins, from 0."""
    lengths: Array
    """`[pairs, 2]` int64: the number of steps of the segment."""
    labels: Array
    """`[pairs]` float64: the probability that the second segment is preferred; 0.5 if both are equally good."""
    labelled_by: tuple[str, ...]
    """Who gave the label, for each pair: the name of a teacher or of a person."""
    source: str = "preferences"
    """Name in error messages."""

    def __post_init__(self) -> None:
        for name, dtype in (
            ("episodes", np.int64),
            ("starts", np.int64),
            ("lengths", np.int64),
            ("labels", np.float64),
        ):
            with located(self.source, f"{name} of the pairs"):
                object.__setattr__(self, name, cast(getattr(self, name), dtype))
        object.__setattr__(self, "labelled_by", tuple(self.labelled_by))
        count = len(self.labels)
        shapes = {name: getattr(self, name).shape for name in ("episodes", "starts", "lengths", "labels")}
        if not count or shapes != {**dict.fromkeys(shapes, (count, 2)), "labels": (count,)}:
            came = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise DataError(
                f"{self.source}: expected labels [pairs] and the others [pairs, 2], a pair at least; got {came}"
            )
        if len(self.labelled_by) != count or not all(isinstance(name, str) for name in self.labelled_by):
            raise DataError(
                f"{self.source}: expected the name of who labelled each of {count} pairs, got {len(self.labelled_by)}"
            )
        self._refuse(~((self.labels >= 0) & (self.labels <= 1)), "a label in [0, 1]", self.labels)  # NaN too
        for name, least in (("episodes", 0), ("starts", 0), ("lengths", 1)):
            values = getattr(self, name)
            self._refuse(values < least, f"{name} of {least} or more", values)

    def __len__(self) -> int:
        return len(self.labels)

    def _refuse(self, bad: Array, expected: str, values: Array, source: str | None = None) -> None:
        if bad.any():
            at = tuple(np.argwhere(bad)[0])
            raise DataError(f"{source or self.source}: expected {expected}, got {values[at]} in {_place(*at)}")

    def check_inside(self, source: str, episode_lengths: Array) -> None:
        """Raise DataError, with the pair, unless every segment lies within one of the episodes, `[episodes]` steps."""
        last = len(episode_lengths) - 1
        self._refuse(self.episodes > last, f"episodes in [0, {last}]", self.episodes, source)
        beyond = self.starts > episode_lengths[self.episodes] - self.lengths  # a sum could overflow
        if beyond.any():
            at = tuple(np.argwhere(beyond)[0])
            start, length, episode = (int(getattr(self, name)[at]) for name in ("starts", "lengths", "episodes"))
            raise DataError(
                f"{source}: expected segments within one episode, got steps {start} to {start + length - 1} of episode "
                f"{episode}, which has {episode_lengths[episode]} steps, in {_place(*at)}"
            )

    def selected(self, numbers: Array, total: int) -> PreferencePairs | None:
        """The pairs whose episodes are all among `numbers`, renumbered by their positions there; None if none is left.

        numbers: the chosen ones of `total` episodes; one that is repeated counts at its first position.
        """
        position = np.full(total, -1, dtype=np.int64)
        position[numbers[::-1]] = np.arange(len(numbers))[::-1]
        kept = np.flatnonzero((position[self.episodes] >= 0).all(1))
        if not len(kept):
            return None
        return replace(
            self,
            episodes=position[self.episodes[kept]],
            starts=self.starts[kept],
            lengths=self.lengths[kept],
            labels=self.labels[kept],
            labelled_by=tuple(self.labelled_by[i] for i in kept),
        )

    def shifted(self, count: int) -> PreferencePairs:
        """The same pairs where `count` other episodes come first."""
        return replace(self, episodes=self.episodes + count)

    def joined(self, other: PreferencePairs) -> PreferencePairs:
        """These pairs followed by others of the same episodes."""
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _FIELDS[:-1]
        }
        return replace(self, labelled_by=self.labelled_by + other.labelled_by, **joined)

    def record(self) -> dict[str, Any]:
        """The pairs as JSON values."""
        arrays = {name: getattr(self, name).tolist() for name in _FIELDS[:-1]}
        return {"format": FORMAT, **arrays, "labelled_by": list(self.labelled_by)}


def _place(pair: int, segment: int | None = None) -> str:
    """A pair, or one of its segments, for error messages."""
    return f"pair {pair}" if segment is None else f"pair {pair}, {('first', 'second')[segment]} segment"


def pairs_from_record(source: str, record: Any) -> PreferencePairs:
    """The inverse of `PreferencePairs.record`. Raises DataError for another format, and for what is no such record."""
    if not isinstance(record, Mapping) or record.get("format") != FORMAT or not set(_FIELDS) <= record.keys():
        came = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        raise DataError(f"{source}: expected preference pairs of format {FORMAT} with {', '.join(_FIELDS)}, got {came}")
    if not isinstance(record["labelled_by"], Sequence):
        raise DataError(f"{source}: expected labelled_by as a list of names, got {record['labelled_by']!r}")
    return PreferencePairs(**{name: record[name] for name in _FIELDS}, source=f"{source}, preferences")


def draw_segments(
    source: str, episode_lengths: Array, length: int, count: int, generator: np.random.Generator
) -> tuple[Array, Array]:
    """Episodes and starts `[count]` of segments of `length` steps, uniform over all segments that there are.

    An episode of T steps has T − length + 1 of them, a shorter one none. Raises DataError if every episode is shorter.
    """
    starts = np.maximum(episode_lengths - length + 1, 0)  # [episodes]: number of segments of each
    ends = np.cumsum(starts)
    if not ends[-1]:
        raise DataError(
            f"{source}: expected segments of at most {episode_lengths.max()} steps, the longest episode, got {length}; "
            "choose a smaller segment_length"
        )
    numbers = generator.integers(ends[-1], size=count)
    episodes = np.searchsorted(ends, numbers, side="right")
    return episodes, numbers - (ends - starts)[episodes]
