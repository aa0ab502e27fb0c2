"""Batches of which one half are demonstrations, and the other half steps of the agent's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from herdbook.core.types import Replay, Transitions, tree_map


def half_and_half(
    demonstrations: Replay, replay: Replay, size: int, generators: Sequence[torch.Generator], *, discount: float
) -> Transitions:
    """`size` transitions of the demonstrations, then `size` of the replay: `[2 · size, …]`, or `[S, 2 · size, …]`.

    Both are drawn with replacement, so that fewer demonstrations than `size` do not change the mix.
    """
    axis = 0 if len(generators) == 1 else 1
    halves = [source.sample(size, generators, discount=discount) for source in (demonstrations, replay)]
    batch: Transitions = tree_map(lambda *leaves: torch.cat(leaves, axis), *halves)
    return batch
