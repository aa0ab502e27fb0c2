"""The part of a dataset that serves as demonstrations: the best episodes, the first ones, every k-th step."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from herdbook.datasets.episodes import DataError, Episodes

CHOSEN = "demonstrations: "
"""The beginning of a note in `transforms` on what was chosen."""


def choose_demonstrations(
    episodes: Episodes, *, first: int | None = None, every: int = 1, min_return: float | None = None
) -> Episodes:
    """The episodes with a return of at least `min_return`, of these the first `first`, of each every `every`-th step.

    Returns are undiscounted sums of the rewards in `episodes`. The first step of each episode is always among the
    sampled ones. Subsampling is a mask, so next observations are those of the recorded steps, and the ends of the
    episodes stay known. Each choice is recorded in `transforms`.

    Raises DataError if no episode has such a return, or fewer than `first` are left; ValueError for `first` or `every`
    below 1 and for a `min_return` that is not finite.
    """
    if first is not None and first < 1:
        raise ValueError(f"expected first >= 1, got {first}")
    if min_return is not None and not math.isfinite(min_return):
        raise ValueError(f"expected a finite min_return, got {min_return}")
    notes, source = [], episodes.source
    if min_return is not None:
        returns = episodes.returns()
        if not (keep := returns >= min_return).any():
            best = f"the best of {len(returns)} is {returns.max():.10g}"
            raise DataError(f"{source}: expected episodes with a return of at least {min_return:g}; {best}")
        episodes = episodes.filter(keep)
        notes.append(f"{CHOSEN}return >= {min_return:g}")
    if first is not None:
        if len(episodes) < first:
            among = "" if min_return is None else f" with a return of at least {min_return:g}"
            raise DataError(f"{source}: expected at least {first} episodes{among}, got {len(episodes)}")
        episodes = episodes.select(np.arange(first))
        notes.append(f"{CHOSEN}the first {first}")
    if every != 1:
        episodes = episodes.subsample(every)
        notes.append(f"{CHOSEN}1 step in {every}")
    return replace(episodes, transforms=(*episodes.transforms, *notes)) if notes else episodes
