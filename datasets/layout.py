"""The T+1 layout of recorded episodes: arithmetic on episode offsets.

Episodes are concatenated in flat arrays. An episode of T steps has T entries of actions, rewards and flags, and T+1
rows of observations. Step t, counted over all episodes, reads rows t+e and t+e+1, where e is the number of its episode.
`offsets` `[episodes + 1]` holds the first step of each episode, and at its end the number of steps.
"""

from __future__ import annotations

import numpy as np

from herdbook.core.types import Array


def offsets_of(lengths: Array | list[int]) -> Array:
    """Offsets `[episodes + 1]` of episodes with these numbers of steps `[episodes]`."""
    return np.concatenate([[0], np.cumsum(lengths)])


def row_offsets(offsets: Array) -> Array:
    """Row offsets `[episodes + 1]`: the first row of each episode, and the number of rows."""
    starts: Array = offsets + np.arange(len(offsets))
    return starts


def rows_of_steps(offsets: Array) -> Array:
    """`[steps]` int64: the observation row of each step; its next observation is in the following row."""
    return np.arange(offsets[-1]) + np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def positions_in_episodes(offsets: Array) -> Array:
    """`[steps]` int64: number of earlier steps in the same episode."""
    positions: Array = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    return positions


def ranges(starts: Array, lengths: Array) -> Array:
    """The ranges `starts[i], …, starts[i] + lengths[i] - 1`, concatenated."""
    ends = np.cumsum(lengths)
    numbers: Array = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
    return numbers


def locate(row: int, starts: Array) -> tuple[int, int]:
    """(episode, row within the episode) of a row; episode e begins at `starts[e]`."""
    episode = int(np.searchsorted(starts, row, side="right")) - 1
    return episode, int(row - starts[episode])


def place(row: int, starts: Array) -> str:
    """A row's episode and step, for error messages."""
    return "episode {}, step {}".format(*locate(row, starts))
